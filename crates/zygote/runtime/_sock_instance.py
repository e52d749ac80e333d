"""What an instance runs: take a function, then answer its invocations, over the frames of frames.rs.

Started by itself for a cold start (descriptors: 0 /dev/null, 1 and 2 the log, 3 the socket), or called in a process that
a zygote forked. Either way everything was dropped before; nothing here needs a right or gives one up.

Few imports: each one that a function does not make itself is one that it would find already made. `baseline()` is
the list, and the sharing rule excepts it.
"""

import builtins
import importlib
# Not used here: the C half of it looks for json.decoder among the modules when it has an error to tell.
import json.decoder
import os
import sys
import time

# A handler, or a library that it uses, may put something else in the place of any module's names. What answers need goes
# by names of its own, bound here: a function that replaces json.dumps replaces its own. `__builtins__` is where the
# functions of this file find len() and its like. The json package it has to itself, since the methods of that look up its names.
__builtins__ = dict(vars(builtins))
read, write, open_fd, dup2, close, leave_now = os.read, os.write, os.open, os.dup2, os.close, os._exit


def own_json():
    """Copies of the modules json.decoder and json.encoder that nobody else has."""
    finder = next(finder for finder in sys.meta_path if getattr(finder, "__name__", "") == "PathFinder")
    package = finder.find_spec("json")
    found = type(sys)("json")

    def import_own(name, *more):
        return found if name == "json" else builtins_import(name, *more)

    builtins_import = __builtins__["__import__"]
    for name in ("scanner", "encoder", "decoder"):
        spec = finder.find_spec("json." + name, package.submodule_search_locations)
        module = type(sys)(spec.name)
        module.__dict__["__builtins__"] = dict(__builtins__, __import__=import_own)
        exec(spec.loader.get_code(spec.name), module.__dict__)
        setattr(found, name, module)
    return found.decoder.JSONDecoder, found.encoder.JSONEncoder


decoder, encoder = own_json()
decode = decoder().decode

TASK = "/var/task"
LAYERS = ("/opt/python", "/opt/python/lib/python%d.%d/site-packages" % sys.version_info[:2])
PACKAGES = "/packages"
REHEARSAL = "/tmp/_sock_rehearsal"
# Lambda's bound for a buffered answer, bytes.
MAX_RESULT = 6291556
# Of what ties an answer to its invocation, see frames.rs.
NONCE = 16
CLIENT = ("installation_id", "app_title", "app_version_name", "app_version_code", "app_package_name")

# What the imports of a zygote did that the function's own imports would have done: environment variables that they set
# (None: removed), entries that they added before and after the others of sys.path.
env_written, path_before, path_after = {}, [], []
request_id, answering = "", True


class Gone(Exception):
    """The gateway closed the socket."""


class NotLoaded(Exception):
    """The handler could not be found: Lambda's type of error, its message, lines of its stack."""


def read_exactly(fd, count):
    chunks = []
    while count:
        chunk = read(fd, min(count, 1 << 20))
        if not chunk:
            raise Gone
        chunks.append(chunk)
        count -= len(chunk)
    return b"".join(chunks)


def receive(fd):
    header = read_exactly(fd, 5)
    return header[:1], read_exactly(fd, int.from_bytes(header[1:], "little"))


def send(fd, kind, *payload):
    size = sum([len(part) for part in payload])
    view = memoryview(b"".join((kind, size.to_bytes(4, "little"), *payload)))
    while view:
        view = view[write(fd, view):]


def failure(kind, message, request_id="", stack=()):
    """An error as Lambda's clients see it; the log gets it too."""
    try:
        trace = "Traceback (most recent call last):\n" + "".join(stack) if stack else ""
        sys.stdout.write("[ERROR] %s: %s\n%s" % (kind, message[:4096], trace[:16384]))
    except Exception:
        pass
    error = {"errorMessage": message, "errorType": kind, "requestId": request_id, "stackTrace": list(stack)}
    text = as_is(error).encode("utf-8", "replace")
    return text if len(text) <= MAX_RESULT else too_large(request_id)


def too_large(request_id):
    message = "Response payload size exceeded maximum allowed payload size (%d bytes)." % MAX_RESULT
    return failure("Function.ResponseSizeTooLarge", message, request_id)


def shown(error):
    try:
        text = str(error)
    except Exception:
        text = "<exception str() failed>"
    # Half a surrogate pair is no text to whoever reads this.
    return text.encode("utf-8", "replace").decode()


def frames(trace):
    """File, line and function of each frame of the handler's own: not of this file and of the import system."""
    hidden = (__file__, "<frozen importlib", importlib.__file__)
    while trace is not None:
        code = trace.tb_frame.f_code
        if not code.co_filename.startswith(hidden):
            yield code.co_filename, trace.tb_lineno, code.co_name
        trace = trace.tb_next


def lines(trace):
    """A stack as Python prints it."""
    own = list(frames(trace))
    try:
        import traceback

        # Without the markers below a line that Python has from 3.11.
        return traceback.StackSummary.from_list([(*frame, None) for frame in own]).format()
    except Exception:
        # Replaced by something else, or no descriptor is left to import it with: what can be said without the sources.
        return ['  File "%s", line %s, in %s\n' % frame for frame in own]


def describe(error, request_id):
    """An exception as Lambda shows it."""
    return failure(type(error).__name__, shown(error), request_id, lines(error.__traceback__))


class Identity:
    cognito_identity_id = cognito_identity_pool_id = None


class ClientContext:
    def __init__(self, custom, env, client):
        self.custom, self.env, self.client = custom, env, client


class Client:
    def __init__(self, given):
        for name in CLIENT:
            setattr(self, name, given.get(name))


def loads(text):
    if isinstance(text, bytes):
        text = text.decode()
    return decode(text)


def client_context(text):
    try:
        given = loads(text or "null")
    except ValueError:
        return None
    if not isinstance(given, dict):
        return None
    client = given.get("client")
    return ClientContext(given.get("custom"), given.get("env"), Client(client) if isinstance(client, dict) else None)


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


def search_path(standard, task):
    """The path of a function: its own files, its layers, the standard library, its packages."""
    # Not os.path.isdir(), where an exception is made of each that is missing.
    layers = [layer for layer in LAYERS if os.access(layer, os.X_OK)]
    return path_before + [task] + layers + list(standard) + [PACKAGES] + path_after


def standard_path():
    """Of an interpreter without site. Some distributions have `lib64`."""
    directories = tuple("%s/%s/" % (sys.prefix, name) for name in ("lib", sys.platlibdir))
    return [entry for entry in sys.path if entry.startswith(directories) or entry.endswith(".zip")]


def load(handler):
    """Imports `package.module.function` or `directory/module.function`."""
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
    if not hasattr(function, "__code__") and not isinstance(function, type):
        function = getattr(function, "__call__", function)
    bound = hasattr(function, "__self__")
    code = getattr(function, "__code__", None)
    if code is None:
        return True
    variadic = code.co_flags & 0x04
    return bool(variadic) or code.co_argcount - bound >= 2


def set_environment(env):
    """Of what is there already nothing is written: each variable that is costs two microseconds and some copies of pages."""
    env = {os.fsencode(name): os.fsencode(value) for name, value in env.items()}
    for name, value in env_written.items():
        if value is None:
            env.pop(os.fsencode(name), None)
        else:
            env[os.fsencode(name)] = os.fsencode(value)
    present = dict(os.environb)
    for name in present:
        if name not in env:
            del os.environb[name]
    for name, value in env.items():
        if present.get(name) != value:
            os.environb[name] = value
    if present.get(b"TZ") != env.get(b"TZ"):
        time.tzset()


def set_logging(logging):
    """As Lambda has it: the root logger has a handler, so what passes a logger's level is printed."""

    class Handler(logging.Handler):
        def emit(self, record):
            record.aws_request_id = request_id
            try:
                sys.stdout.write(self.format(record))
            except Exception:
                self.handleError(record)

    logging.Formatter.converter = time.gmtime
    handler = Handler()
    text = "[%(levelname)s]\t%(asctime)s.%(msecs)03dZ\t%(aws_request_id)s\t%(message)s\n"
    handler.setFormatter(logging.Formatter(text, "%Y-%m-%dT%H:%M:%S"))
    logging.getLogger().addHandler(handler)


class LoggingFinder:
    """Waits for the first import of logging: to import it ahead would double the time that a cold start takes."""

    waits = True

    @classmethod
    def find_spec(cls, name, path=None, target=None):
        if name != "logging" or not cls.waits:
            return None
        cls.waits = False
        from importlib.machinery import PathFinder

        spec = PathFinder.find_spec(name, path)
        if spec is not None:
            execute = spec.loader.exec_module

            def exec_module(module):
                execute(module)
                set_logging(module)

            spec.loader.exec_module = exec_module
        return spec


def watch_logging():
    if LoggingFinder.waits and LoggingFinder not in sys.meta_path:
        sys.meta_path.insert(0, LoggingFinder)


def become(init, standard, task):
    """Becomes a function; returns it, or None when it could not be loaded, and the frame that says so."""
    start = time.perf_counter()
    set_environment(init["env"])
    sys.path[:] = search_path(standard, task)
    watch_logging()
    # An overlay's root may carry the time stamp of the zygote's: its listing must not be taken for this one's.
    for entry in list(sys.path_importer_cache):
        if entry not in standard:
            del sys.path_importer_cache[entry]
    try:
        os.chdir(task)
    except OSError:
        os.chdir("/tmp")
    try:
        handler, with_context = load(init["handler"])
    except NotLoaded as error:
        kind, message, *stack = error.args
        return None, (b"E", failure(kind, message, "", stack))
    except Exception as error:
        return None, (b"E", describe(error, ""))
    took = int((time.perf_counter() - start) * 1e6)
    return (handler, with_context, init["function"]), (b"R", b'{"init_us": %d}' % took)


def take(fd, standard):
    """Becomes the function that the gateway sends; returns it, or None when it could not be loaded."""
    kind, payload = receive(fd)
    if kind != b"I":
        raise Gone
    init = loads(payload)
    before = set(sys.modules) if init.get("tell") else None
    function, reply = become(init, standard, TASK)
    if before is not None and function is not None:
        reply = b"R", tell(reply[1], before)
    send(fd, *reply)
    return function


def attribute(module, name):
    """Not by getattr(), at which a lazy module would load."""
    try:
        return object.__getattribute__(module, "__dict__").get(name)
    except AttributeError:
        return None


def file_of(module):
    file = attribute(module, "__file__")
    return file if isinstance(file, str) else ""


def tell(ready, before):
    """Adds to what is said of a loaded handler which modules it imported, but for the function's own."""
    new = [(name, module) for name, module in list(sys.modules.items()) if isinstance(name, str) and name not in before]
    # What has no specification was made, not imported.
    imported = [name for name, module in new
                if attribute(module, "__spec__") is not None and not file_of(module).startswith((TASK, "/opt/"))]
    return escaped(dict(loads(ready), imported=imported)).encode()


def rehearse(standard):
    """Goes the way to a first answer once, with a handler of its own, while there is time. Nothing of it stays.

    What a forked process writes to for the first time costs a page fault, and those are most of what a first answer takes.
    """
    file = REHEARSAL + "/_sock_rehearsal.py"
    text = "def handler(event, context):\n    return [event, context.aws_request_id]\n"
    names = ("name", "version", "log_group", "log_stream")
    function = dict(dict.fromkeys(names, ""), memory_mb=128)
    init = {"handler": "_sock_rehearsal.handler", "env": dict(os.environ), "function": function}
    header = {"request_id": "", "arn": "", "deadline_ms": 0}
    try:
        os.mkdir(REHEARSAL)
        with open(file, "w") as module:
            module.write(text)
        # Through text and back, as what the gateway sends is.
        ready, _ = become(loads(as_is(init)), standard, REHEARSAL)
        invoke(ready, header, b'{"rehearsal": [1, 2.5, null]}')
        flush()
        os.chdir("/")
        os.unlink(file)
        os.rmdir(REHEARSAL)
    except Exception:
        pass  # It only warms: the real thing will say what is wrong.
    sys.modules.pop("_sock_rehearsal", None)


def flush():
    for name in ("stdout", "stderr", "__stdout__", "__stderr__"):
        try:
            getattr(sys, name).flush()
        except Exception:
            pass  # Closed, replaced by something else, or gone: the handler's business.


def plain(value):
    """Numbers as boto3 reads them from a table are JSON's numbers to Lambda."""
    decimal = sys.modules.get("decimal")
    if decimal is None or not isinstance(value, decimal.Decimal):
        raise TypeError("Object of type %s is not JSON serializable" % type(value).__name__)
    return int(value) if value.is_finite() and value == value.to_integral_value() else float(value)


as_is, escaped = encoder(ensure_ascii=False, default=plain).encode, encoder(default=plain).encode


def marshal(result):
    try:
        return as_is(result).encode()
    except UnicodeEncodeError:
        # Half a surrogate pair (a file name that is no UTF-8, say) has to be escaped.
        return escaped(result).encode()


def invoke(function, header, event):
    """Calls the handler; returns the frame that answers."""
    handler, with_context, info = function
    try:
        event = loads(event)
    except Exception as error:
        return b"e", failure("Runtime.UnmarshalError", "Unable to unmarshal input: %s" % error, request_id)
    try:
        result = handler(event, Context(info, header)) if with_context else handler(event)
    except Exception as error:
        if not answering:
            raise
        return b"e", describe(error, request_id)
    try:
        text = marshal(result)
    except Exception as error:
        return b"e", failure("Runtime.MarshalError", "Unable to marshal response: %s" % error, request_id)
    return (b"r", text) if len(text) <= MAX_RESULT else (b"e", too_large(request_id))


def answer(fd, function, payload):
    global request_id
    nonce, begin = payload[:NONCE], NONCE + 4
    end = begin + int.from_bytes(payload[NONCE:begin], "little")
    header = loads(payload[begin:end])
    request_id = header["request_id"]
    kind, text = invoke(function, header, payload[end:])
    flush()
    send(fd, kind, nonce, text)


def serve(fd, standard, early):
    send(fd, b"H")
    if early:
        rehearse(standard)
    function = take(fd, standard)
    while function:
        kind, payload = receive(fd)
        if kind == b"V":
            answer(fd, function, payload)


def leave(fd):
    """In a process that the handler forked: should it come back from the handler, it has nobody to answer."""
    global answering
    if answering:
        answering = False
        null = open_fd("/dev/null", 2)
        dup2(null, fd, False)
        close(null)


def settle(fd):
    """Makes the process look the same to a handler, whether it was forked from a zygote or not."""
    os.set_inheritable(fd, False)
    os.register_at_fork(after_in_child=lambda: leave(fd))
    # The platform's script (kept: it is in use) is not the function's; multiprocessing would run it in each process.
    global script
    script, sys.modules["__main__"] = sys.modules["__main__"], type(sys)("__main__")
    sys.argv[:] = [""]
    # The site module, which is left out, makes these.
    builtins.exit = builtins.quit = sys.exit
    # What was printed before a time-out kills the process is to be seen.
    for stream in (sys.__stdout__, sys.__stderr__):
        stream.reconfigure(line_buffering=True)


def main(fd, standard, early=False):
    """Serves until the gateway hangs up or the handler ends the process; returns the exit code.

    `early`: there is no request yet.
    """
    try:
        settle(fd)
        serve(fd, standard, early)
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
    code = 1
    try:
        code = main(3, standard_path())
    finally:
        # At once: no thread that a handler left is waited for.
        leave_now(code)
