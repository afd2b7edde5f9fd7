"""The sandbox with programs that mean no harm: verdicts, counts, forms, data, commands."""

# ruff: noqa: E501 (a program a line)

from __future__ import annotations

import ast
import dataclasses
import os
import struct
import sys
import threading
from pathlib import Path

import pytest

import eval.sandbox as package
from eval.sandbox import Checks, Form, Limits, Program, Verdict, bubblewrap, form_of, open_sandbox, pool
from eval.sandbox.seccomp import seccomp_filter
from eval.sandbox.watch import descendants
from megatron_codemix.errors import UserError


@pytest.mark.parametrize("machine", ["x86_64", "aarch64"])
def test_the_filter_denies_what_it_lists_and_nothing_else(machine):
    architecture = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}[machine]
    x86 = machine == "x86_64"
    allow, eperm, enosys = 0x7FFF0000, 0x50001, 0x50026
    expected = [
        ("read", 0 if x86 else 63, (), allow), ("ptrace", 101 if x86 else 117, (), eperm), ("unshare", 272 if x86 else 97, (), eperm),
        ("io_uring", 425, (), eperm), ("execve", 59 if x86 else 221, (), allow), ("futex", 202 if x86 else 98, (9,), allow),
        ("clone", 56 if x86 else 220, (0x11,), allow), ("clone user", 56 if x86 else 220, (0x10000011,), eperm), ("clone3", 435, (), enosys),
        ("socket", 41 if x86 else 198, (1,), eperm), ("pair", 53 if x86 else 199, (1,), allow), ("pair", 53 if x86 else 199, (2,), eperm),
        ("prlimit", 302 if x86 else 261, (0, 7), allow), ("prlimit of another", 302 if x86 else 261, (1, 7), eperm),
        ("ioctl", 16 if x86 else 29, (1, 0x5401), allow), ("push", 16 if x86 else 29, (0, 0x5412), eperm),
        ("flags", 16 if x86 else 29, (0, 0x40086602), eperm), ("new", 463, (), enosys), ("mseal", 462, (), allow), ("last", 0xFFFFFFFF, (), enosys),
    ]  # fmt: skip
    for name, number, arguments, verdict in expected:
        assert judged(seccomp_filter(machine), architecture, number, arguments) == verdict, name
    assert judged(seccomp_filter(machine), 0x40000003, 0, ()) == 0x80000000
    assert judged(seccomp_filter(machine), architecture, 0x40000000, ()) == enosys
    assert seccomp_filter("riscv64") is None


def judged(program, architecture, number, arguments):
    """What a classic BPF program returns for a system call."""
    instructions = list(struct.iter_unpack("<HBBI", program))
    data = struct.pack("<IIQ6Q", number, architecture, 0, *arguments, *[0] * (6 - len(arguments)))
    accumulator, place = 0, 0
    while True:
        code, yes, no, value = instructions[place]
        if code == 0x06:
            return value
        if code == 0x20:
            accumulator = struct.unpack_from("<I", data, value)[0]
            place += 1
            continue
        holds = {0x15: accumulator == value, 0x25: accumulator > value, 0x45: bool(accumulator & value)}[code]
        place += 1 + (yes if holds else no)


@pytest.mark.parametrize(
    "code, tests, verdict",
    [
        ("x = 1", (), Verdict.PASSED),
        ("if __name__ == '__main__':\n    raise ValueError", (), Verdict.RAISED),
        ("if __name__ == '__main__':\n    raise ValueError\ndef f():\n    return 1", ("assert f()",), Verdict.PASSED),
        ("def f(x):\n    return x", ("assert f(1) == 1", "assert f(2) == 2"), Verdict.PASSED),
        ("def f(x):\n    return x", ("assert f(1) == 1", "assert f(2) == 1"), Verdict.FAILED_TEST),
        ("def f(x):\n    return x", ("assert g(1)",), Verdict.FAILED_TEST),
        ("def f(x):\n    return x", ("assert f(1) ==",), Verdict.UNSUPPORTED),
        ("def f(x):\n    return x", ("assert f(lambda: 1)",), Verdict.UNSUPPORTED),
        ("def f(x):\n    return x", ("assert 1",), Verdict.UNSUPPORTED),
        ("def f(x):\n    return x", ("def test():\n    assert f(1)",), Verdict.FAILED_TEST),
        ("raise ValueError('no')", (), Verdict.RAISED),
        ("input()", (), Verdict.RAISED),
        ("def f(:", (), Verdict.SYNTAX),
        ("import sys\nsys.exit(0)", (), Verdict.PASSED),
        ("import sys\nsys.exit(3)", (), Verdict.RAISED),
        ("exit()", (), Verdict.PASSED),
        ("import os\nos._exit(0)", (), Verdict.ENDED_EARLY),
        ("def f(n):\n    return f(n + 1)\nf(0)", (), Verdict.RAISED),
        ("import asyncio\nasync def g():\n    return 1\ndef f():\n    return asyncio.run(g())", ("assert f() == 1",), Verdict.PASSED),
        ("import dataclasses\n@dataclasses.dataclass\nclass A:\n    x: int = 0\ndef f():\n    return A(3).x", ("assert f() == 3",), Verdict.PASSED),
        ("import tempfile\nwith tempfile.TemporaryFile() as f:\n    f.write(b'x')", (), Verdict.PASSED),
        ("import hashlib, decimal, statistics, sqlite3, csv, uuid, unittest", (), Verdict.PASSED),
        ("import subprocess\nassert subprocess.run(['echo', 'x'], capture_output=True).stdout == b'x\\n'", (), Verdict.PASSED),
        ("import threading\nt = threading.Thread(target=print)\nt.start()\nt.join()", (), Verdict.PASSED),
        ("import multiprocessing as m\nassert m.Pool(2).map(abs, [-1, 2]) == [1, 2]", (), Verdict.PASSED),
        ("import sys\nsys.setrecursionlimit(5000)\ndef f(n):\n    return n and 1 + f(n - 1)", ("assert f(3000) == 3000",), Verdict.PASSED),
        ("def sum(a, b):\n    return a + b", ("assert sum(10, 15) == 25",), Verdict.PASSED),
        ("import sys\ndef f(t):\n    return sys.getsizeof(t)", ("assert f((1, 2)) == sys.getsizeof((1, 2))",), Verdict.PASSED),
    ],
)  # fmt: skip
def test_verdicts(sandbox, code, tests, verdict):
    result = sandbox.run(Program(code, Checks(tests), seconds=5))
    assert result.verdict == verdict, result
    assert result.form == (Form.CALLS if tests else Form.RUN)
    assert result.confined


VALUES = [
    "None", "True", "3", "-(10 ** 5000)", "2 ** 53", "0.1", "-0.0", "float('inf')", "1e308", "1 + 2j", "'a\\ud800\\0é'", "b'\\0\\xff'", "bytearray(b'x')",
    "[1, [2.0, (3,)]]", "(1, 'a')", "{1, 2.5}", "frozenset({(1, 2)})", "{(1, 2): [3], None: {}}", "range(3, 9, 2)", "[]", "()", "{}", "set()",
    "__import__('collections').deque([1])", "__import__('fractions').Fraction(1, 3)", "__import__('decimal').Decimal('1.10')", "int", "{1: 2}.keys()",
    "{'d': [[1, 2]]}", "{'i': '0x1'}", "['value', 3]",
]  # fmt: skip


def test_values_go_and_come_as_they_are(sandbox):
    source = "def same(x):\n    return x\ndef told(x):\n    return repr(x)\ndef kind(x):\n    return type(x).__name__"
    tests = [f"x = {value}\ny = same(x)\nassert y == x and type(y) is type(x) and repr(y) == told(x) == repr(x)" for value in VALUES]
    tests[3] = "import sys\nsys.set_int_max_str_digits(0)\nassert same(-(10 ** 5000)) == -(10 ** 5000)"
    result = sandbox.run(Program(source, Checks(tuple(tests), every=True), seconds=5))
    assert (result.verdict, result.passed) == (Verdict.PASSED, len(VALUES)), result


@pytest.mark.parametrize(
    "made, test",
    [
        ("__import__('collections').Counter('aab')", "f() == {'a': 2, 'b': 1} and type(f()) is dict"),
        ("__import__('collections').OrderedDict(a=1)", "f() == {'a': 1}"),
        ("__import__('collections').defaultdict(int, a=1)", "f() == {'a': 1}"),
        ("__import__('collections').namedtuple('P', 'x y')(1, 2)", "f() == (1, 2) and type(f()) is tuple"),
        ("__import__('enum').IntEnum('E', 'A').A", "f() == 1 and type(f()) is int"),
        ("type('S', (str,), {})('abc')", "f() == 'abc' and type(f()) is str"),
        ("(x * x for x in range(3))", "list(f()) == [0, 1, 4] and next(f()) == 0"),
        ("map(str, [1])", "list(f()) == ['1']"),
        ("zip([1], [2])", "dict(f()) == {1: 2}"),
        ("{1: 2}.items()", "list(f()) == [(1, 2)]"),
        ("{1: 2}.values()", "list(f()) == [2]"),
        ("__import__('re').match('(a)(b)?', 'ac')", "f() and f().group() == 'a' and f().groups() == ('a', None) and f().span(1) == (0, 1)"),
        ("float('nan')", "f() != f()"),
    ],
)  # fmt: skip
def test_other_values_come_as_what_they_are_derived_from(sandbox, made, test):
    result = sandbox.run(Program(f"def f():\n    return {made}", Checks((f"assert {test}",))))
    assert result.verdict == Verdict.PASSED, result


def test_exceptions_come_as_the_nearest_builtin_one(sandbox):
    source = "class Mine(KeyError):\n    pass\ndef f(n):\n    raise [Mine('k'), ValueError('no', 3), StopIteration(4), UnicodeError][n]"
    tests = ("try:\n    f(0)\nexcept KeyError as error:\n    assert error.args == ('k',) and type(error) is KeyError",
             "try:\n    f(1)\nexcept ValueError as error:\n    assert error.args == ('no', 3)",
             "try:\n    f(2)\nexcept RuntimeError as error:\n    assert 'StopIteration' in str(error)",
             "try:\n    f(4)\nexcept IndexError:\n    assert True")  # fmt: skip
    assert sandbox.run(Program(source, Checks(tests))).verdict == Verdict.PASSED


@pytest.mark.parametrize("test", ["assert f(1) ==", "return f(1)", "assert f(1); return", "assert (f(1)", "assert f('''", "assert f(1)\\"])
@pytest.mark.parametrize("form", [Form.CALLS, Form.INSIDE])
def test_tests_that_are_no_python_do_not_pass(sandbox, form, test):
    for names in (None, ("f",)):
        result = sandbox.run(Program("def f(x):\n    return x", Checks((test,), form=form, names=names)))
        assert result.verdict in (Verdict.UNSUPPORTED, Verdict.FAILED_TEST), result


@pytest.mark.parametrize(
    "test, held",
    [
        ("assert f(1); assert f(2)", 2),
        ("assert f(1)  # ; no", 1),
        ("assert f('a;b') == 'a;b'", 1),
        ("assert f(1) == \\\n 1", 1),
        ("assert f(1)\r\nassert f(2)", 2),
    ],
)
def test_assertions_on_one_line(sandbox, test, held):
    result = sandbox.run(Program("def f(x):\n    return x", Checks((test,))))
    assert (result.verdict, result.passed, result.total) == (Verdict.PASSED, held, held), result


@pytest.mark.parametrize(
    "every, tests, expected",
    [
        (False, ("assert f(1) == 1", "assert f(2) == 0", "assert f(3) == 3"), (1, 3)),
        (True, ("assert f(1) == 1", "assert f(2) == 0", "assert f(3) == 3"), (2, 3)),
        (True, ("def check(g):\n    assert g(1) == 0\n    assert g(2) == 2\n    for n in range(4):\n        assert g(n) == n % 2", "check(f)"), (1, 3)),
        (False, ("def check(g):\n    assert g(2) == 2\n    for n in range(4):\n        assert g(n) == n % 2", "check(f)"), (1, 2)),
        (True, ("def check(g):\n    for n in range(9):\n        try:\n            assert g(n)\n        finally:\n            n\n    assert g(3) == 3", "check(f)"), (1, 2)),
        (True, ("def sub(n):\n    assert f(n) == 1\n    return True\nassert sub(1)\nassert sub(2)",), (2, 3)),
        (False, ("def sub(n):\n    assert f(n) == 1\n    return True\nassert sub(1)\nassert sub(2)",), (1, 3)),
        (True, ("def check(g):\n    assert g(1) == 1\n    g(1)[0]\n    assert g(2) == 2", "check(f)"), (1, 2)),
        (False, ("def check(g):\n    if g(1) == 0:\n        assert g(1) == 9\n    assert g(2) == 2", "check(f)"), (1, 1)),
        (True, ("if f(1) != 1:\n    raise ValueError", "if f(2) != 0:\n    raise ValueError"), (1, 2)),
    ],
)  # fmt: skip
@pytest.mark.parametrize("form", [Form.CALLS, Form.INSIDE])
def test_assertions_are_counted(sandbox, form, every, tests, expected):
    result = sandbox.run(Program("def f(x):\n    return x", Checks(tests, every=every, form=form)))
    assert (result.passed, result.total) == expected, result
    assert (result.verdict == Verdict.PASSED) == (result.passed == result.total)
    assert result.share == expected[0] / expected[1]


@pytest.mark.parametrize("every", [False, True])
@pytest.mark.parametrize("form", [Form.CALLS, Form.INSIDE])
def test_a_program_cannot_add_assertions_that_hold(sandbox, form, every):
    """A reward made of the share would be inflated by a long answer that a loop of the tests goes through."""
    tests = ("for one in f(0):\n    assert one >= 0", "assert f(1) == [7]", "assert f(2) == [8]")
    long, short = (sandbox.run(Program(f"def f(x):\n    return [1] * {size}", Checks(tests, every=every, form=form))) for size in (5000, 1))
    assert long.verdict == Verdict.FAILED_TEST
    assert (long.passed, long.total) == (short.passed, short.total) == (1, 3)


def test_what_belongs_to_the_problem_is_not_taken_from_the_program(sandbox):
    prompt = "import math\ndef poly(xs, x):\n    return sum(c * x ** n for n, c in enumerate(xs))\n\ndef zero(xs):\n    '''A zero.'''\n"
    tests = ("def check(g):\n    xs = [-4, 2]\n    assert math.fabs(poly(xs, g(xs))) < 1e-4", "check(zero)")
    honest, cheat = prompt + "    return -xs[0] / xs[1]\n", prompt + "    return 7\ndef poly(xs, x):\n    return 0\n"
    for form in (Form.CALLS, Form.INSIDE):
        checks = Checks(tests, setup=prompt, names=("zero",), form=form)
        assert sandbox.run(Program(honest, checks)).verdict == Verdict.PASSED
        assert sandbox.run(Program(cheat, checks)).verdict == Verdict.FAILED_TEST


def test_forms_follow_from_the_reference():
    pair = "class Pair:\n    pass\ndef f(x):\n    return 1"
    assert form_of(pair, Checks(("assert f([Pair()]) == 1",))) == Form.INSIDE
    assert form_of(pair, Checks(("assert f([1]) == 1",))) == Form.CALLS
    assert form_of("def f(x):\n    return 1", Checks(("assert f(root)",), setup="root = 3")) == Form.CALLS
    assert form_of("x = 3", Checks(("assert x == 3",))) == Form.INSIDE
    assert form_of("x = 3", Checks(("assert 1",))) == Form.INSIDE
    assert form_of("import sys\ndef f(x):\n    return 1", Checks(("assert f(3) == sys.maxsize",))) == Form.CALLS
    assert form_of("x = 3", Checks()) == Form.RUN


def test_the_declared_fallback(sandbox):
    program = Program(
        "class P:\n    def __init__(s, x):\n        s.x = x\ndef f(ps):\n    return ps[0].x", Checks(("assert f([P(3)]) == 3",))
    )
    assert sandbox.run(program).verdict != Verdict.PASSED
    inside = dataclasses.replace(program, checks=dataclasses.replace(program.checks, form=Form.INSIDE))
    result = sandbox.run(inside)
    assert (result.verdict, result.form, result.passed) == (Verdict.PASSED, Form.INSIDE, 1)


@pytest.mark.parametrize("detail", ["\ud800", "\x1b[31m", "a\nb"])
def test_odd_details_are_texts(sandbox, detail):
    result = sandbox.run(Program(f"raise ValueError({detail!r})"))
    assert result.verdict == Verdict.RAISED
    assert result.detail.startswith("ValueError: ")
    assert result.detail.isprintable()
    result.detail.encode("utf-8")


def test_programs_run_side_by_side_and_answer_in_order(sandbox):
    programs = [Program("def f(x):\n    return x", Checks((f"assert f({number}) % 3",))) for number in range(30)]
    expected = [Verdict.PASSED if number % 3 else Verdict.FAILED_TEST for number in range(30)]
    with open_sandbox(sandbox.limits, workers=3) as several:
        assert [result.verdict for result in several.run_many(iter(programs))] == expected
        found = {}
        threads = [threading.Thread(target=lambda n=n: found.update({n: several.run(programs[n]).verdict})) for n in range(9)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert [found[number] for number in range(9)] == expected[:9]
        stopped = several.run_many(iter(programs))
        assert next(stopped).verdict == expected[0]
        stopped.close()
    assert all(worker._zygotes == {} for worker in several._workers)


def test_a_zygote_that_died_is_replaced(sandbox):
    program = Program("def f():\n    return 1", Checks(("assert f() == 1",)))
    for role in ("candidate", "tester"):
        for worker in sandbox._workers:
            os.kill(worker._zygotes[role].first, 9)
        assert sandbox.run(program).verdict == Verdict.PASSED


def test_a_thread_that_ends_takes_no_sandbox_along(sandbox):
    program = Program("open('/tmp/x', 'w')")  # after which the sandbox is started anew
    for _ in range(3):
        thread = threading.Thread(target=sandbox.run, args=(program,))
        thread.start()
        thread.join()
        assert sandbox.run(program).verdict == Verdict.PASSED


def test_nothing_is_left_of_a_sandbox_that_is_closed(sandbox):
    before = set(descendants(os.getpid()))
    files = len(os.listdir("/proc/self/fd"))
    with open_sandbox(sandbox.limits, workers=2) as opened:
        opened.run(Program("import os\nos.fork()"))
        assert len(set(descendants(os.getpid())) - before) == 10  # with two testers that stand
    assert set(descendants(os.getpid())) <= before
    assert len(os.listdir("/proc/self/fd")) == files


def test_unsafe_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr(bubblewrap, "TOOLS_PATH", str(tmp_path))
    with pytest.raises(UserError, match=r"cannot be had here .*apt-get install bubblewrap.*--unsafe-no-sandbox"):
        open_sandbox()
    with open_sandbox(Limits(seconds=1), unsafe=True) as opened:
        results = [
            opened.run(Program("def f():\n    return 1", Checks(("assert f() == 1",)))),
            opened.run(Program("def f():\n    return 1", Checks(("assert f() == 2",)))),
            opened.run(Program("import os, time\nif os.fork() == 0:\n    os.setsid()\n    time.sleep(600)")),
            opened.run(Program("while True:\n    pass")),
            opened.run_command(["sh", "-c", "cat a/b"], {"a/b": b"text"}),
        ]
        first = opened._workers[0]._zygotes["candidate"].first
        assert descendants(first) == []
    assert [result.verdict for result in results] == ["passed", "failed a test", "passed", "timed out", "passed"]
    assert not any(result.confined for result in results)
    assert results[-1].stdout == b"text"


def test_a_bubblewrap_that_does_not_isolate_is_refused(sandbox, tmp_path, monkeypatch):
    fake = tmp_path / "bwrap"
    fake.write_text(
        f"#!{sys.executable}\nimport json, os, sys\nif '--version' in sys.argv:\n    print('bubblewrap 0.9.0')\n    raise SystemExit\n"
        "os.write(int(sys.argv[sys.argv.index('--info-fd') + 1]), json.dumps({'child-pid': os.getpid()}).encode())\n"
        "os.close(int(sys.argv[sys.argv.index('--info-fd') + 1]))\n"
        f"argv = sys.argv[sys.argv.index('--') + 1:]\nos.environ['PYTHONPATH'] = {str(Path(package.__file__).parent)!r}\nos.execv(argv[0], argv)\n"
    )
    fake.chmod(0o755)
    tmp_path.chmod(0o755)
    monkeypatch.setattr(pool, "interpreters", lambda: [("/usr/bin/python3", "/usr")])
    monkeypatch.setattr(
        bubblewrap.Bubblewrap, "_command", lambda self, limits, seccomp, information: [str(fake), "--info-fd", str(information)]
    )
    with pytest.raises(UserError, match=r"cannot be had here .the sandbox has no process namespace"):
        open_sandbox()


@pytest.mark.parametrize(
    "argv, files, compiling, verdict, stdout",
    [
        (["sh", "-c", "cat; cat a/b"], {"a/b": b"two"}, None, Verdict.PASSED, b"onetwo"),
        (["sh", "-c", "exit 3"], {}, None, Verdict.RAISED, b""),
        (["sh", "-c", "kill -SEGV $$"], {}, None, Verdict.CRASHED, b""),
        (["sh", "-c", "sleep 600"], {}, None, Verdict.TIMEOUT, b""),
        (["sh", "-c", "while :; do :; done"], {}, None, Verdict.TIMEOUT, b""),
        (["sh", "-c", "sleep 600 & echo x"], {}, None, Verdict.PASSED, b"x\n"),
        (["sh", "-c", "exec >&- 2>&-; exit 4"], {}, None, Verdict.RAISED, b""),
        (["cat", "made"], {"m": b"y"}, ["cp", "m", "made"], Verdict.PASSED, b"y"),
        (["cat", "made"], {}, ["cp", "m", "made"], Verdict.SYNTAX, b""),
        (["python3", "-c", "x = bytearray(b'x') * (600 << 20)"], {}, None, Verdict.MEMORY, b""),
        (["sh", "-c", "cat /etc/passwd || cat SECRET"], {}, None, Verdict.RAISED, b""),
        (["no-such-command"], {}, None, Verdict.RAISED, b""),
    ],
)
def test_commands(host, sandbox, argv, files, compiling, verdict, stdout):
    limits = Limits(seconds=2, memory_bytes=400 << 20, processes=64, output_bytes=1 << 16)
    argv = [part.replace("SECRET", str(host.secret)) for part in argv]
    result = sandbox.run_command(argv, files, compiling, b"one", limits)
    assert (result.verdict, result.stdout) == (verdict, stdout), result
    assert result.form == Form.EXIT_STATUS


def test_a_command_that_prints_for_ever(host, sandbox):
    result = sandbox.run_command(["yes"], {}, limits=Limits(seconds=5, output_bytes=1 << 16, processes=64))
    assert (result.verdict, len(result.stdout), result.exit_status) == (Verdict.OUTPUT, 1 << 16, None)


@pytest.mark.parametrize("name", ["/etc/x", "../x", "a/../../x", "", "a\0b"])
def test_files_of_commands_stay_in_their_folder(sandbox, name):
    with pytest.raises(ValueError, match="relative path"):
        sandbox.run_command(["true"], {name: b""})


TOOLCHAINS = {
    "node": (["node", "p.js"], {"p.js": b"console.log(require('assert').equal(1, 1) || 'fine')"}, None),
    "javac": (["java", "P"], {"P.java": b"public class P { public static void main(String[] a) { System.out.println(\"fine\"); } }"}, ["javac", "P.java"]),
    "g++": (["./p"], {"p.cpp": b"#include <iostream>\nint main() { std::cout << \"fine\\n\"; }"}, ["g++", "-o", "p", "p.cpp"]),
    "rustc": (["./p"], {"p.rs": b"fn main() { println!(\"fine\"); }"}, ["rustc", "p.rs"]),
    "go": (["go", "run", "p.go"], {"p.go": b"package main\nimport \"fmt\"\nfunc main() { fmt.Println(\"fine\") }"}, None),
}  # fmt: skip


@pytest.mark.parametrize("tool", TOOLCHAINS)
def test_toolchains(sandbox, tool):
    if sandbox.run_command(["sh", "-c", f"command -v {tool}"], {}).verdict != Verdict.PASSED:
        pytest.skip(f"{tool} is not among the system's programs")
    argv, files, compiling = TOOLCHAINS[tool]
    result = sandbox.run_command(argv, files, compiling)
    assert (result.verdict, result.stdout) == (Verdict.PASSED, b"fine\n"), result


def test_the_package_imports_little():
    allowed = {"eval.sandbox", "megatron_codemix.errors", "megatron_codemix.files"}
    for path in Path(package.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom):
                assert not node.level or path.parent.name == "inside", "relative imports are for what runs within"
                names = [] if node.level else [node.module]
            for name in names:
                inside = path.parent.name == "inside"
                ours = any(name == one or name.startswith(one + ".") for one in allowed)
                assert name.partition(".")[0] in sys.stdlib_module_names or (ours and not inside), f"{path}: {name}"
