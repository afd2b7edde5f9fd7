"""Reading small files, judging outputs, and figures over seeds."""

from __future__ import annotations

import gzip
import statistics
from pathlib import Path

import pytest

from eval.engine import Completion
from eval.generalisation import Benchmark, read_benchmark
from eval.generalisation.interval import over_seeds, t_quantile
from eval.generalisation.scoring import score_items, summarise
from megatron_codemix.errors import UserError

COGS = [
    ("Emma ate a cake .", "eat . agent ( x _ 1 , Emma ) AND eat . theme ( x _ 1 , x _ 3 ) AND cake ( x _ 3 )", "in_distribution"),
    ("The cat smiled .", "* cat ( x _ 1 ) ; smile . agent ( x _ 2 , x _ 1 )", "in_distribution"),
    ("Emma", "Emma", "primitive"),
]
GEN = [(*COGS[0][:2], "pp_recursion"), (*COGS[1][:2], "active_to_passive"), (*COGS[0][:2], "active_to_passive")]
PASSIVE = [
    ("the yak amused my newts . passiv", "my newts were amused by the yak ."),
    ("the yak by my newt amused my newts . decl", "the yak by my newt amused my newts ."),
    ("the yak confused my newt near the newts . passiv", "my newt near the newts was confused by the yak ."),
]
PASSIVE_GEN = [("the yak by my newt amused my newts . passiv", "my newts were amused by the yak by my newt .")]


def write(folder: Path, train: list[tuple[str, ...]], gen: list[tuple[str, ...]], packed: bool = False) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for split, rows in {"train": train, "dev": train[:1], "test": train, "gen": gen}.items():
        content = "".join("\t".join(row) + "\n" for row in rows).encode()
        (folder / f"{split}.tsv{'.gz' if packed else ''}").write_bytes(gzip.compress(content) if packed else content)
    return folder


@pytest.fixture
def cogs(tmp_path: Path) -> Path:
    return write(tmp_path / "cogs", COGS, GEN, packed=True)


def judged(benchmark: Benchmark, said: list[str], part: str, seed: int = 0) -> list[dict]:
    completions = [Completion(text, "end", 1, False) for text in said]
    return score_items(benchmark, benchmark.parts[part][1], completions, seed)


def test_variable_free_forms_are_made_where_none_are_published(cogs: Path) -> None:
    for place in (cogs, cogs.parent):
        benchmark = read_benchmark("cogs_vf", place)
        examples = benchmark.splits["train"].examples
        assert [one.output for one in examples] == ["eat ( agent = Emma , theme = cake )", "smile ( agent = * cat )", "Emma"]
        assert "made variable-free by codemix" in str(benchmark.splits["train"].record["schema"])
    published = [(given, form, kind) for (given, _, kind), form in zip(COGS, [one.output for one in examples], strict=True)]
    gen = [(*published[0][:2], "pp_recursion"), (*published[1][:2], "active_to_passive")]
    write(cogs.parent / "cogs_vf", published, gen)
    assert "made" not in str(read_benchmark("cogs_vf", cogs.parent).splits["train"].record["schema"])
    assert read_benchmark("cogs", cogs.parent).splits["gen"].examples[2].line == 3


def test_outputs_of_cogs(cogs: Path) -> None:
    benchmark = read_benchmark("cogs_vf", cogs)
    items = judged(benchmark, ["  eat ( agent = Emma ,\n theme = cake )  ", "smile ( theme = * cat )", "nothing ("], "cogs_vf_test")
    assert [item["reason"] for item in items] == ["exact", "wrong_arguments", "malformed"]
    assert [item["score"] for item in items] == [1, 0, 0]
    assert items[1]["errors"] == {"wrong_role": 1}
    swapped = judged(benchmark, ["eat ( theme = cake , agent = Emma )", "smile ( agent = cat )", "Emma"], "cogs_vf_test", 1)
    assert [item["reason"] for item in swapped] == ["wrong_form", "wrong_words", "exact"]
    assert [item["id"] for item in swapped] == ["1/1", "2/1", "3/1"]
    outcome = summarise({0: items, 1: swapped}, benchmark.errors)
    metrics = outcome.metrics
    assert metrics["exact_match"] == pytest.approx(1 / 3)
    assert metrics["well_formed"] == pytest.approx((2 / 3 + 1) / 2)
    assert metrics["exact_match_given_well_formed"] == pytest.approx((1 / 2 + 1 / 3) / 2)
    assert metrics["exact_match_stderr"] == 0.0
    assert metrics["errors_wrong_role"] == 1
    assert metrics["items_with_argument_errors"] == 1
    assert metrics["reason_malformed"] == 1
    assert metrics["exact_match_primitive"] == 0.5
    assert (metrics["rows"], metrics["seeds"]) == (3, 2)
    linear = read_benchmark("cogs", cogs)
    renumbered = "eat . agent ( x _ 2 , Emma ) AND eat . theme ( x _ 2 , x _ 3 ) AND cake ( x _ 3 )"
    assert judged(linear, [renumbered], "cogs_gen_structural")[0]["reason"] == "wrong_form"


def test_outputs_of_passivization(tmp_path: Path) -> None:
    benchmark = read_benchmark("passivization", write(tmp_path, PASSIVE, PASSIVE_GEN))
    assert [one.type for one in benchmark.parts["passivization_test"][1]] == ["passiv_plain", "decl_pp_on_subject", "passiv_pp_on_object"]
    items = judged(
        benchmark, ["my newts was amused by the yak .", "my newts were amused by the yak by my newt .", PASSIVE[2][1]], "passivization_test"
    )
    assert [item["reason"] for item in items] == ["wrong_words", "passiv_instead_of_decl", "exact"]
    assert items[0]["errors"] == {"wrong_auxiliary": 1}
    assert [item.get("main_verb") for item in items] == [0, None, 1]
    assert [item["second_word"] for item in items] == [1, 0, 1]
    metrics = summarise({0: items}, benchmark.errors).metrics
    assert metrics["main_verb"] == 0.5
    assert metrics["second_word"] == pytest.approx(2 / 3)
    # the mistake that the generalisation set is made to find: what stands next to the verb is taken for its subject
    (item,) = judged(benchmark, ["my newts were amused by my newt ."], "passivization_gen")
    assert item["errors"] == {"wrong_object": 1}


def test_outputs_of_question_formation(tmp_path: Path) -> None:
    train = [("the yak has smiled . quest", "has the yak smiled ?"), ("the yaks have read . decl", "the yaks have read .")]
    gen = [("the yaks that has smiled have read . quest", "have the yaks that has smiled read ?")]
    benchmark = read_benchmark("question_formation", write(tmp_path, train, gen))
    (moved_first,) = judged(benchmark, ["has the yaks that smiled have read ?"], "question_formation_gen")
    assert (moved_first["first_word"], moved_first["reason"], moved_first["same_words"]) == (0, "malformed", 1)
    assert moved_first["type"] == "quest_clause_on_subject"
    (right,) = judged(benchmark, [gen[0][1]], "question_formation_gen")
    assert (right["score"], right["first_word"]) == (1, 1)
    assert "main_verb" not in right


@pytest.mark.parametrize(
    "change, reason",
    [
        (lambda folder: (folder / "gen.tsv").unlink(), "holds no gen.tsv"),
        (lambda folder: (folder / "train.tsv").unlink(), "holds no train.tsv"),
        (lambda folder: (folder / "test.tsv").write_bytes(b""), "test.tsv: is empty"),
        (lambda folder: (folder / "test.tsv").write_bytes(b"a\tb\n"), "test.tsv:1: has 2 tab-separated cells, not 3"),
        (lambda folder: (folder / "test.tsv").write_bytes(b"\xff\tb\tc\n"), "test.tsv:1: is not UTF-8"),
        (lambda folder: (folder / "test.tsv").write_bytes(b"a\tEmma\tt\n\na\tEmma\tt\n"), "test.tsv:2: has 1"),
        (lambda folder: (folder / "test.tsv").write_bytes(b"a\tEmma \tt\n"), "test.tsv:1: cell 2"),
        (lambda folder: (folder / "test.tsv").write_bytes(b"a\teat ( x\tt\n"), "test.tsv:1: 'eat ( x'"),
        (lambda folder: (folder / "test.tsv").write_bytes(gzip.compress(b"a\tb\tc\n" * 99)[:20]), "cannot be read to its end"),
        (lambda folder: (folder / "gen.tsv").write_text("\t".join(GEN[0]) + "\n"), "no rows for cogs_gen_lexical"),
    ],
)
def test_bad_cogs_files(tmp_path: Path, change, reason: str) -> None:
    folder = write(tmp_path / "cogs", COGS, GEN)
    change(folder)
    with pytest.raises(UserError) as told:
        read_benchmark("cogs", folder)
    assert reason in str(told.value)
    assert len(told.value.problems) == 1


def test_bad_transformation_files(tmp_path: Path) -> None:
    def told(row: tuple[str, str], name: str = "passivization", rows: int | None = None) -> str:
        folder = write(tmp_path / "rows", PASSIVE, [*PASSIVE_GEN, row])
        with pytest.raises(UserError) as error:
            read_benchmark(name, folder, rows)
        return str(error.value)

    assert "gen.tsv:2: 'the yak amused my newt .' does not end in decl" in told(("the yak amused my newt .", "x"))
    assert "gen.tsv:2: its tag is 'quest'" in told(("the yak amused my newt . quest", "x"))
    assert "gen.tsv:2: its output is not what 'passiv' makes" in told(
        ("the yak amused my newt . passiv", "my newt were amused by the yak .")
    )
    assert "gen.tsv:2" in told(("the yak amused . passiv", "x"))
    assert "leave the option out" in told(PASSIVE_GEN[0], rows=5)
    (tmp_path / "rows" / "train.tsv").unlink()
    with pytest.raises(UserError, match=r"fetch the published training file there$"):
        read_benchmark("passivization", tmp_path / "rows")
    grammar = tmp_path / "rows" / "x.gr"
    grammar.write_text("1\tROOT\tNP verb NP .\n\n2\tNP\tthe N1 yak\n1\tNP\tmy newts\t\n".replace("verb", "amused"))
    with pytest.raises(UserError, match="or give --make-training-rows"):
        read_benchmark("passivization", tmp_path / "rows")
    made = read_benchmark("passivization", tmp_path / "rows", 3).splits["train"].examples
    assert len({one.input for one in made}) == 3
    assert not {one.input for one in made} & {row[0] for row in PASSIVE}
    with pytest.raises(UserError, match="different rows, not 50"):
        read_benchmark("passivization", tmp_path / "rows", 50)
    for text, reason in [("x\tROOT\ta\n", "its weight is 'x'"), ("1\tS\ta\n", "no rule for ROOT"), ("1\tROOT\tROOT\n", "deeper than 50")]:
        grammar.write_text(text)
        with pytest.raises(UserError, match=reason):
            read_benchmark("passivization", tmp_path / "rows", 3)


@pytest.mark.parametrize(
    "degrees, quantile", [(1, 12.7062), (2, 4.3027), (3, 3.1824), (4, 2.7764), (9, 2.2622), (10, 2.2281), (30, 2.0423)]
)
def test_t_quantiles(degrees: int, quantile: float) -> None:
    """Tabled values, two-sided 95 %."""
    assert t_quantile(degrees) == pytest.approx(quantile, abs=1e-4)


def test_interval_over_seeds() -> None:
    values = [0.2, 0.5, 0.6]
    found = over_seeds(values)
    stderr = statistics.stdev(values) / 3**0.5
    assert found.mean == pytest.approx(statistics.mean(values))
    assert found.stderr == pytest.approx(stderr)
    assert found.low == pytest.approx(found.mean - 4.302653 * stderr, abs=1e-6)
    assert over_seeds([0.3]).stderr is None
    same = over_seeds([0.1, 0.1, 0.1])
    assert (same.mean, same.stderr, same.low, same.high) == (pytest.approx(0.1), 0.0, None, None), "no interval of no width"
