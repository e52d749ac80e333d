"""What an instance runs: take a function, then answer its invocations, over the frames of frames.rs.

Started by itself for a cold start (descriptors: 0 /dev/null, 1 and 2 the log, 3 the socket), or called in a process that
a zygote forked. Either way everything was dropped before; nothing here needs a right or gives one up.

Few imports: each one that a function does not make itself is one that it would find already made. `baseline()` is
the list, and the sharing rule excepts it.
"""

import builtins
import importlib
# Built in.
import marshal
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
pack, unpack = marshal.dumps, marshal.loads


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
path_finder = next(finder for finder in sys.meta_path if getattr(finder, "__name__", "") == "PathFinder")
# What Python itself has: built-in and frozen modules.
before_path = sys.meta_path[:sys.meta_path.index(path_finder)]
source_loader, spec_of = (getattr(importlib._bootstrap_external, name) for name in (
    "SourceFileLoader", "spec_from_file_location"))
decode = decoder().decode

TASK = "/var/task"
LAYERS = ("/opt/python", "/opt/python/lib/python%d.%d/site-packages" % sys.version_info[:2])
PACKAGES = "/packages"
REHEARSAL = "/tmp/_sock_rehearsal"
# Lambda's bound for a buffered answer, bytes.
MAX_RESULT = 6291556
# Of what ties an answer to its invocation, see frames.rs.
NONCE = 16
# Of compiled modules that other instances are to have, bytes: what is longer takes its time anyway.
MAX_CODE = 65536
CLIENT = ("installation_id", "app_title", "app_version_name", "app_version_code", "app_package_name")

# What the imports of a zygote did that the function's own imports would have done: environment variables that they set
# (None: removed), entries that they added before and after the others of sys.path.
env_written, path_before, path_after = {}, [], []
# What was read beyond a frame, by descriptor.
held = {}
# os.environ's and os.environb's own, bytes to bytes. To go through those costs microseconds, and copies of pages, for each variable.
environment = os.environb._data
# The socket of an instance, once it is one.
serving = None
# What rehearsals send.
rehearsed = {}
request_id, answering = "", True
# An invocation that came with the function has waited for its import, which does not count.
late_ms = 0


class Gone(Exception):
    """The gateway closed the socket."""


class NotLoaded(Exception):
    """The handler could not be found: Lambda's type of error, its message, lines of its stack."""


def receive(fd):
    """A frame. What came with it is kept for the next time: an invocation may follow its function at once."""
    data = held.pop(fd, b"") or read_more(fd, 65536)
    while len(data) < 5:
        data += read_more(fd, 5 - len(data))
    end = 5 + int.from_bytes(data[1:5], "little")
    if len(data) < end:
        chunks = [data]
        left = end - len(data)
        while left:
            chunks.append(read_more(fd, min(left, 1 << 20)))
            left -= len(chunks[-1])
        data = b"".join(chunks)
    if len(data) > end:
        held[fd] = data[end:]
    return data[:1], data[5:end]


def read_more(fd, count):
    chunk = read(fd, count)
    if not chunk:
        raise Gone
    return chunk


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
        self._deadline_ms = header["deadline_ms"] + late_ms

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
    module_name = module_name.replace("/", ".")
    try:
        module = Own.load(module_name) or importlib.import_module(module_name)
    except ImportError as error:
        message = "Unable to import module '%s': %s" % (handler.rpartition(".")[0], error)
        raise NotLoaded("Runtime.ImportModuleError", message) from error
    except SyntaxError as error:
        message = "Syntax error in module '%s': %s" % (handler.rpartition(".")[0], error)
        line = '  File "%s" Line %s\n    %s\n' % (error.filename, error.lineno, (error.text or "").strip())
        raise NotLoaded("Runtime.UserCodeSyntaxError", message, line) from error
    function = getattr(module, name, None)
    if not callable(function):
        what = "missing on" if function is None else "not a function of"
        given = handler.rpartition(".")[0]
        raise NotLoaded("Runtime.HandlerNotFound", "Handler '%s' %s module '%s'" % (name, what, given))
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
    """Of what is there already nothing is written."""
    wanted = {name.encode("utf-8", "surrogateescape"): value.encode("utf-8", "surrogateescape") for name, value in env.items()}
    for name, value in env_written.items():
        if value is None:
            wanted.pop(os.fsencode(name), None)
        else:
            wanted[os.fsencode(name)] = os.fsencode(value)
    zone = environment.get(b"TZ")
    for name in [name for name in environment if name not in wanted]:
        os.unsetenv(name)
        del environment[name]
    for name, value in wanted.items():
        if environment.get(name) != value:
            os.putenv(name, value)
            environment[name] = value
    if zone != wanted.get(b"TZ"):
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


class Own(importlib._bootstrap_external.SourceFileLoader):
    """Loads a module of the function's own. To look for one and to compile it is most of what an import of a few lines takes, and
    gives the same in each instance of the function: what the first one found, the others are told.
    """

    # Of modules by name: file, whether it is a package, code.
    known, kept, keeps, found_on, usual = {}, {}, False, (), []

    def get_code(self, fullname):
        known = self.known.pop(fullname, None)
        if known is not None:
            return known[2]
        code = super().get_code(fullname)
        if self.keeps:
            self.kept[fullname] = self.path, self.is_package(fullname), code
        return code

    @classmethod
    def find_spec(cls, name, path=None, target=None):
        """What is known, if this is where it was found; else, while that is to be told, what the next finder would give."""
        known = cls.known.get(name)
        if known is not None:
            file, package, _ = known
            directory = file.rpartition("/")[0]
            place = directory.rpartition("/")[0] if package else directory
            if sys.path == cls.found_on if path is None else list(path) == [place]:
                within = [directory] if package else None
                return spec_of(name, file, loader=cls(name, file), submodule_search_locations=within)
        if not cls.keeps:
            return None
        spec = path_finder.find_spec(name, path, target)
        if spec is not None and type(spec.loader) is source_loader and spec.loader.path.startswith(TASK + "/"):
            spec.loader = cls(spec.loader.name, spec.loader.path)
        return spec

    @classmethod
    def load(cls, name):
        """What `import name` would give, if it is known and there is nobody whom that would ask before; a third of it is the asking."""
        known = cls.known.get(name)
        if known is None or "." in name or name in sys.modules or sys.meta_path != cls.usual:
            return None
        file, package, code = known
        if package or sys.path != cls.found_on:
            return None
        spec = importlib._bootstrap.ModuleSpec(name, cls(name, file), origin=file)
        spec._set_fileattr = spec._initializing = True
        module = importlib._bootstrap.module_from_spec(spec)
        # It would get those of this file.
        module.__dict__["__builtins__"] = vars(builtins)
        sys.modules[name] = module
        try:
            exec(code, module.__dict__)
        except BaseException:
            sys.modules.pop(name, None)
            raise
        finally:
            spec._initializing = False
        # Which may have put another one in its place.
        return sys.modules[name]

    @classmethod
    def begin(cls, known, keeps):
        """From now on modules are found so; `keeps` what is found for others."""
        try:
            cls.known = {name: (file, package, code) for name, file, package, code in unpack(known)} if known else {}
        except Exception:
            cls.known = {}  # Who had it sent was the function's own import: it is looked for as ever.
        cls.keeps, cls.found_on = keeps, list(sys.path)
        if (known or keeps) and path_finder in sys.meta_path:
            # What is built in goes before what is on the path.
            sys.meta_path.insert(sys.meta_path.index(path_finder), cls)
        cls.usual = [LoggingFinder] * (LoggingFinder in sys.meta_path) + before_path + [cls, path_finder]

    @classmethod
    def end(cls):
        """What was kept, for `begin` of another instance."""
        if cls in sys.meta_path:
            sys.meta_path.remove(cls)
        kept = pack([(name, *module) for name, module in list(cls.kept.items())]) if cls.keeps else b""
        cls.known, cls.kept, cls.keeps = {}, {}, False
        return kept if len(kept) <= MAX_CODE else b""


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


def become(init, standard, task, code=b""):
    """Becomes a function; returns it, or None when it could not be loaded, and the frame that says so."""
    global late_ms
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
    Own.begin(code, init.get("keep"))
    try:
        handler, with_context = load(init["handler"])
    except NotLoaded as error:
        kind, message, *stack = error.args
        return None, (b"E", failure(kind, message, "", stack))
    except Exception as error:
        return None, (b"E", describe(error, ""))
    took = time.perf_counter() - start
    late_ms = took * 1000
    return (handler, with_context, init["function"]), (b"R", b'{"init_us": %d}' % (took * 1e6))


def take(fd, standard):
    """Becomes the function that the gateway sends; returns it, or None when it could not be loaded."""
    kind, payload = receive(fd)
    if kind != b"I":
        raise Gone
    end = 4 + int.from_bytes(payload[:4], "little")
    init = loads(payload[4:end])
    before = set(sys.modules) if init.get("tell") else None
    function, reply = become(init, standard, TASK, payload[end:])
    kept = Own.end()
    kind, text = reply
    if function is None:
        send(fd, kind, text)
    else:
        text = text if before is None else tell(text, before)
        send(fd, kind, len(text).to_bytes(4, "little"), text, kept)
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
    try:
        if not rehearsed:
            # In a zygote, for all its children.
            file, text = REHEARSAL + "/_sock_rehearsal.py", "def handler(event, context):\n    return [event, context.aws_request_id]\n"
            function = dict(dict.fromkeys(("name", "version", "log_group", "log_stream"), ""), memory_mb=128)
            env = {os.fsdecode(name): os.fsdecode(value) for name, value in environment.items()}
            rehearsed["init"] = as_is({"handler": "_sock_rehearsal.handler", "env": env, "function": function}).encode()
            rehearsed["code"] = pack([("_sock_rehearsal", file, False, compile(text, file, "exec"))])
        os.mkdir(REHEARSAL)
        ready, _ = become(loads(rehearsed["init"]), standard, REHEARSAL, rehearsed["code"])
        invoke(ready, loads(b'{"request_id": "", "arn": "", "deadline_ms": 0}'), b'{"rehearsal": [1, 2.5, null]}')
        flush()
        os.chdir("/")
        os.rmdir(REHEARSAL)
    except Exception:
        pass  # It only warms: the real thing will say what is wrong.
    Own.end()
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


def rendered(result):
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
        text = rendered(result)
    except Exception as error:
        return b"e", failure("Runtime.MarshalError", "Unable to marshal response: %s" % error, request_id)
    return (b"r", text) if len(text) <= MAX_RESULT else (b"e", too_large(request_id))


def answer(fd, function, payload):
    global request_id, late_ms
    nonce, begin = payload[:NONCE], NONCE + 4
    end = begin + int.from_bytes(payload[NONCE:begin], "little")
    header = loads(payload[begin:end])
    request_id = header["request_id"]
    if not header.get("early"):
        late_ms = 0
    kind, text = invoke(function, header, payload[end:])
    flush()
    send(fd, kind, nonce, text)


def serve(fd, standard, spare):
    send(fd, b"H")
    if spare:
        rehearse(standard)
    function = take(fd, standard)
    while function:
        kind, payload = receive(fd)
        if kind == b"V":
            answer(fd, function, payload)


def leave():
    """In a process that the handler forked: should it come back from the handler, it has nobody to answer."""
    global answering
    if answering and serving is not None:
        answering = False
        null = open_fd("/dev/null", 2)
        dup2(null, serving, False)
        close(null)


def settle():
    """Makes the process look the same to a handler, whether it was forked from a zygote or not."""
    os.register_at_fork(after_in_child=leave)
    # The platform's script (kept: it is in use) is not the function's; multiprocessing would run it in each process.
    global script
    script, sys.modules["__main__"] = sys.modules["__main__"], type(sys)("__main__")
    sys.argv[:] = [""]
    # The site module, which is left out, makes these.
    builtins.exit = builtins.quit = sys.exit
    # What was printed before a time-out kills the process is to be seen.
    for stream in (sys.__stdout__, sys.__stderr__):
        stream.reconfigure(line_buffering=True)


def main(fd, standard, spare=False):
    """Serves until the gateway hangs up or the handler ends the process, which was settled; returns the exit code.

    spare: there is time until it is asked for anything."""
    global serving
    serving = fd
    try:
        serve(fd, standard, spare)
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
    os.set_inheritable(3, False)
    settle()
    try:
        code = main(3, standard_path())
    finally:
        # At once: no thread that a handler left is waited for.
        leave_now(code)
