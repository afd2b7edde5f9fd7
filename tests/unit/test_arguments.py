"""A mistake in a command line is one line that names the remedy."""

import subprocess
import sys

import pytest

from megatron_codemix.arguments import ArgumentParser, nearest
from megatron_codemix.errors import UserError


def parser() -> ArgumentParser:
    one = ArgumentParser(prog="codemix trial")
    one.add_argument("model")
    one.add_argument("--data-dir", required=True)
    one.add_argument("--learning-rate", type=float)
    one.add_argument("--bits-per-byte", nargs="+", action="extend", default=[])
    one.add_argument("--separator")
    one.add_argument("-k", "--k")
    one.add_argument("--dtype", choices=("fp32", "bf16"))
    return one


def with_verbs() -> ArgumentParser:
    one = ArgumentParser(prog="codemix trial")
    verbs = one.add_subparsers(dest="verb", required=True, metavar="VERB")
    verbs.add_parser("to-hf").add_argument("--average", nargs="+")
    verbs.add_parser("from-hf").add_argument("--tokenizer")
    return one


@pytest.mark.parametrize(
    "words, said",
    [
        (["m", "--data-dir", "d", "--learnin-rate", "1"], "unknown option --learnin-rate; did you mean --learning-rate?"),
        (["m", "--datadir", "d"], "unknown option --datadir; did you mean --data-dir?"),  # not: --data-dir is required
        (["m", "--data_dir=d"], "unknown option --data_dir; did you mean --data-dir?"),
        (["m", "--data-dir", "d", "--bits", "a=b"], "unknown option --bits; did you mean --bits-per-byte?"),
        (["m", "--data-dir", "d", "--K", "1"], "unknown option --K; did you mean --k?"),
        (["--hlep"], "unknown option --hlep; did you mean --help?"),
        (["m", "--data-dir", "d", "--zzz"], "unknown option --zzz; see"),
        (["m", "--datadri", "d", "--zzz"], "unknown options --datadri, --zzz; did you mean --data-dir?"),
        (["m", "--data-dir", "d", "--dtype", "bf61"], "did you mean 'bf16'?"),
        (["m"], "are required: --data-dir"),
    ],
)
@pytest.mark.parametrize("parse", ["parse_args", "parse_intermixed_args"])
def test_what_was_meant_is_told(words, said, parse):
    with pytest.raises(UserError) as refused:
        getattr(parser(), parse)(words)
    assert said in str(refused.value)
    assert "\n" not in str(refused.value)
    assert "see 'codemix trial --help'" in str(refused.value).lower()


def test_what_only_looks_like_an_option_is_taken():
    assert parser().parse_args(["m", "--data-dir", "d", "--separator", "--- a rule"]).separator == "--- a rule"
    assert parser().parse_args(["--data-dir=d", "--", "--model"]).model == "--model"
    assert parser().parse_intermixed_args(["--data-dir", "d", "m", "--learning-rate", "-1"]).learning_rate == -1


@pytest.mark.parametrize(
    "words, said",
    [
        (["to-hf", "--avreage", "x"], "unknown option --avreage; did you mean --average? See 'codemix trial to-hf --help'"),
        (["tohf"], "did you mean 'to-hf'?"),
        (["--tokeniser", "from-hf"], "unknown option --tokeniser"),
    ],
)
def test_verbs_and_their_options_too(words, said):
    with pytest.raises(UserError) as refused:
        with_verbs().parse_args(words)
    assert said in str(refused.value)


def test_a_verbs_option_is_no_mistake_of_the_whole():
    assert with_verbs().parse_args(["to-hf", "--average", "x"]).average == ["x"]


def test_nothing_near_is_no_hint():
    assert nearest("--x", ["--k", "--limit"]) is None
    assert nearest("--m", ["--model", "--mode"]) is None


def test_the_package_is_the_command():
    done = subprocess.run([sys.executable, "-m", "megatron_codemix", "prep", "shards", "x", "--resme"], capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "codemix prep: unknown option --resme" in done.stderr
