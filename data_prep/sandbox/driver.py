"""Runs one program inside of the sandbox and says how it ended: started by `bubblewrap.py` as `python -I -S -c …`, imported by nobody.

A request (JSON) comes on standard input, the outcome leaves on standard output. The program runs in a child process that has neither of
them; the child's own word counts only with a token that is drawn before it starts, so a program that ends the process early,
or prints what a passing one would, has not passed.
"""

import json
import math
import os
import resource
import signal
import sys
import types

_MOST_DETAIL = 300


def _explain(error):
    try:
        return f"{type(error).__name__}: {error}"[:_MOST_DETAIL]
    except BaseException:
        return "an exception that cannot be shown"


def _limit(request):
    seconds = math.ceil(request["seconds"])
    limits = {"CPU": seconds, "AS": request["memory"], "FSIZE": request["file"], "NPROC": request["processes"], "NOFILE": 64, "CORE": 0}
    for name, value in limits.items():
        resource.setrlimit(getattr(resource, f"RLIMIT_{name}"), (value, value + 1 if name == "CPU" else value))


def _attempt(request):
    """(verdict, detail) of a program and its tests."""
    name = "program" if request["tests"] else "__main__"
    module = sys.modules[name] = types.ModuleType(name)
    try:
        code = compile(request["code"], "<program>", "exec")
    except MemoryError:
        return "out of memory", "while it was compiled"
    except (SyntaxError, ValueError, RecursionError, UnicodeError) as error:
        return "syntax error", _explain(error)
    try:
        exec(code, module.__dict__)
    except SystemExit as error:
        if request["tests"] or error.code not in (None, 0):
            return "raised", f"SystemExit: {error.code}"[:_MOST_DETAIL]
    except MemoryError:
        return "out of memory", ""
    except BaseException as error:
        return "raised", _explain(error)
    for number, test in enumerate(request["tests"], 1):
        try:
            exec(compile(test, "<test>", "exec"), module.__dict__)
        except MemoryError:
            return "out of memory", f"in test {number}"
        except BaseException as error:
            return "failed a test", f"test {number}: {_explain(error)}"
    return "passed", ""


def _child(request, out, token):
    _limit(request)
    sys.argv = ["program"]
    own = os.getpid()
    outcome = _attempt(request)
    if os.getpid() != own:
        os._exit(0)  # a process that the program made and that came to the end as well
    os.write(out, token + json.dumps(outcome).encode("utf-8", "replace"))
    os._exit(0)


def _run(request, out):
    token = os.urandom(16)
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(read)
        os.close(out)
        try:
            _child(request, write, token)
        finally:
            os._exit(1)
    os.close(write)
    late = []

    def stop(*_):
        late.append(True)
        os.kill(child, signal.SIGKILL)

    signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, request["seconds"])
    _, status = os.waitpid(child, 0)
    signal.setitimer(signal.ITIMER_REAL, 0)
    os.set_blocking(read, False)  # others that it started may hold the other end for ever
    try:
        message = os.read(read, 1 << 16)
    except BlockingIOError:
        message = b""
    if message[:16] == token and not late:
        return json.loads(message[16:])
    if late or (os.WIFSIGNALED(status) and os.WTERMSIG(status) in (signal.SIGXCPU, signal.SIGKILL)):
        return "timed out", ""
    if os.WIFSIGNALED(status):
        return "crashed", signal.Signals(os.WTERMSIG(status)).name
    return "ended early", f"exit code {os.WEXITSTATUS(status)}"


def main():
    """Answer the request on standard input."""
    request = json.loads(sys.stdin.buffer.read())
    out = os.dup(1)
    null = os.open("/dev/null", os.O_RDWR)
    for descriptor in (0, 1, 2):
        os.dup2(null, descriptor)
    verdict, detail = _run(request, out)
    answer = {"verdict": verdict, "detail": detail, "python": ".".join(map(str, sys.version_info[:3]))}
    os.write(out, json.dumps(answer).encode("utf-8", "replace"))


if __name__ == "__main__":
    main()
