"""Studies: shares × seeds of one base run, started as commands, reported as one page. Imports no torch."""

from megatron_codemix.study.executor import Failure, execute
from megatron_codemix.study.expand import make_plan
from megatron_codemix.study.plan import Arm, StudyPlan, check_against_existing
from megatron_codemix.study.report import write_report

__all__ = ["Arm", "Failure", "StudyPlan", "check_against_existing", "execute", "make_plan", "write_report"]
