"""Running programs of unknown origin, so that nothing they do gets out."""

from data_prep.sandbox.bubblewrap import Bubblewrap, Limits, Outcome, Program, Sandbox, Verdict

__all__ = ["Bubblewrap", "Limits", "Outcome", "Program", "Sandbox", "Verdict"]
