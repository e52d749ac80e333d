"""What an instance runs: take a function, then answer its invocations, over the frames of frames.rs.

Started by itself for a cold start (descriptors: 0 /dev/null, 1 and 2 the log, 3 the socket), or called in a process that
a zygote forked. Either way everything was dropped before; nothing here needs a right or gives one up.

Few imports: each one that a function does not make itself is one that it would find already made. `baseline()` is
the list, and the sharing rule excepts it.
"""

import json
import os
import sys
import time

TASK = "/var/task"
LAYERS = ("/opt/python", "/opt/python/lib/python%d.%d/site-packages" % sys.version_info[:2])
PACKAGES = "/packages"
# Lambda's bound for a buffered answer, bytes.
MAX_RESULT = 6291556


class Gone(Exception):
    """The gateway closed the socket."""


class NotLoaded(Exception):
    """The handler could not be found: Lambda's type of error, its message, lines of its stack."""


def read_exactly(fd, count):
    chunks = []
    while count:
        chunk = os.read(fd, min(count, 1 << 20))
        if not chunk:
            raise Gone
        chunks.append(chunk)
        count -= len(chunk)
    return b"".join(chunks)


def receive(fd):
    header = read_exactly(fd, 5)
    return header[:1], read_exactly(fd, int.from_bytes(header[1:], "little"))


def send(fd, kind, payload=b""):
    view = memoryview(kind + len(payload).to_bytes(4, "little") + payload)
    while view:
        view = view[os.write(fd, view):]


def failure(kind, message, request_id="", stack=()):
    return json.dumps(
        {"errorMessage": message, "errorType": kind, "requestId": request_id, "stackTrace": list(stack)}
    ).encode()


def describe(error, request_id):
    """An exception as Lambda shows it: without the frames of this file and of the import system."""
    import importlib
    import traceback

    hidden = (__file__, "<frozen importlib", importlib.__file__)
    frames = [f for f in traceback.extract_tb(error.__traceback__) if not f.filename.startswith(hidden)]
    return failure(type(error).__name__, str(error), request_id, traceback.format_list(frames))


class Identity:
    cognito_identity_id = None
    cognito_identity_pool_id = None


class Attributes:
    def __init__(self, values):
        for name, value in values.items():
            setattr(self, name, value)


def client_context(text):
    if not text:
        return None
    try:
        given = json.loads(text)
    except ValueError:
        return None
    context = Attributes({"custom": given.get("custom"), "env": given.get("env"), "client": None})
    if given.get("client"):
        context.client = Attributes(given["client"])
    return context


class Context:
    def __init__(self, function, header):
        self.aws_request_id = header["request_id"]
        self.function_name = function["name"]
        self.function_version = function["version"]
        self.invoked_function_arn = header["arn"]
        self.memory_limit_in_mb = str(function["memory_mb"])
        self.log_group_name = function["log_group"]
        self.log_stream_name = function["log_stream"]
        self.identity = Identity()
        self.client_context = client_context(header.get("client_context"))
        self._deadline_ms = header["deadline_ms"]

    def get_remaining_time_in_millis(self):
        return max(int(self._deadline_ms - time.time() * 1000), 0)

    def log(self, message):
        sys.stdout.write(str(message))


def search_path(standard):
    """The path of a function: its own files, its layers, the standard library, its packages."""
    layers = [layer for layer in LAYERS if os.path.isdir(layer)]
    return [TASK] + layers + list(standard) + [PACKAGES]


def standard_path():
    return [entry for entry in sys.path if entry.startswith(sys.prefix + "/lib/") or entry.endswith(".zip")]


def load(handler):
    """Imports `package.module.function` or `directory/module.function`."""
    import importlib

    module_name, dot, name = handler.rpartition(".")
    if not dot or not module_name:
        raise NotLoaded("Runtime.MalformedHandlerName", "Bad handler '%s': expected module.function" % handler)
    try:
        module = importlib.import_module(module_name.replace("/", "."))
    except ImportError as error:
        message = "Unable to import module '%s': %s" % (module_name, error)
        raise NotLoaded("Runtime.ImportModuleError", message) from error
    except SyntaxError as error:
        message = "Syntax error in module '%s': %s" % (module_name, error)
        line = '  File "%s" Line %s\n    %s\n' % (error.filename, error.lineno, (error.text or "").strip())
        raise NotLoaded("Runtime.UserCodeSyntaxError", message, line) from error
    function = getattr(module, name, None)
    if not callable(function):
        what = "missing on" if function is None else "not a function of"
        raise NotLoaded("Runtime.HandlerNotFound", "Handler '%s' %s module '%s'" % (name, what, module_name))
    return function, takes_context(function)


def takes_context(function):
    """Whether to call `f(event, context)` or `f(event)`; without the inspect module, which imports a great deal."""
    bound = hasattr(function, "__self__")
    code = getattr(getattr(function, "__func__", function), "__code__", None)
    if code is None:
        return True
    variadic = code.co_flags & 0x04
    return bool(variadic) or code.co_argcount - bound >= 2


def set_environment(env):
    os.environ.clear()
    os.environ.update(env)
    time.tzset()


def take(fd, standard):
    """Becomes the function that the gateway sends; returns it, or None when it could not be loaded."""
    kind, payload = receive(fd)
    if kind != b"I":
        raise Gone
    init = json.loads(payload)
    start = time.perf_counter()
    set_environment(init["env"])
    sys.path[:] = search_path(standard)
    # An overlay's root may carry the time stamp of the zygote's: its listing must not be taken for this one's.
    for entry in list(sys.path_importer_cache):
        if entry not in standard:
            del sys.path_importer_cache[entry]
    try:
        os.chdir(TASK)
    except OSError:
        os.chdir("/tmp")
    try:
        handler, with_context = load(init["handler"])
    except NotLoaded as error:
        kind, message, *stack = error.args
        send(fd, b"E", failure(kind, message, "", stack))
        return None
    except Exception as error:
        send(fd, b"E", describe(error, ""))
        return None
    took = int((time.perf_counter() - start) * 1e6)
    send(fd, b"R", b'{"init_us": %d}' % took)
    return handler, with_context, init["function"]


def flush():
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError, AttributeError):
            pass


def answer(fd, function, payload):
    handler, with_context, info = function
    size = int.from_bytes(payload[:4], "little")
    header = json.loads(payload[4:4 + size])
    request_id = header["request_id"]
    try:
        event = json.loads(payload[4 + size:])
        result = handler(event, Context(info, header)) if with_context else handler(event)
    except Exception as error:
        reply = b"e", describe(error, request_id)
    else:
        try:
            text = json.dumps(result, ensure_ascii=False).encode()
            reply = b"r", text
            if len(text) > MAX_RESULT:
                message = "Response payload size exceeded maximum allowed payload size (%d bytes)." % MAX_RESULT
                reply = b"e", failure("Function.ResponseSizeTooLarge", message, request_id)
        except Exception as error:
            message = "Unable to marshal response: %s" % error
            reply = b"e", failure("Runtime.MarshalError", message, request_id)
    flush()
    send(fd, *reply)


def serve(fd, standard):
    send(fd, b"H")
    function = take(fd, standard)
    while function:
        kind, payload = receive(fd)
        if kind == b"V":
            answer(fd, function, payload)


def main(fd, standard):
    """Serves until the gateway hangs up or the handler ends the process; returns the exit code."""
    try:
        serve(fd, standard)
    except (Gone, BrokenPipeError, ConnectionResetError):
        return 0
    except SystemExit as error:
        if isinstance(error.code, int) or error.code is None:
            return (error.code or 0) & 0xFF
        print(error.code, file=sys.stderr)
        return 1
    except BaseException:
        import traceback

        traceback.print_exc()
        return 1
    finally:
        flush()
    return 0


def baseline():
    """The modules that every function finds imported."""
    return sorted(sys.modules)


if __name__ == "__main__":
    sys.dont_write_bytecode = True
    os._exit(main(3, standard_path()))
