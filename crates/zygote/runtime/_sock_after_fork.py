"""What a forked child has to put right before it is anyone's: descriptors, event loops, random numbers. No rights needed.

An object that an import left behind may hold the number of a descriptor, and closes that number when it dies. In the
child the number would be another's by then, at worst the instance's socket. So the numbers stay taken: /dev/null is
behind them. Event loops, which people use again, get new descriptors.
"""

import ctypes
import gc
import os
import sys

NULL = ctypes.c_char_p(b"/dev/null")

# Loops of asyncio's own kind, closed in the zygote; and of any other kind, which nobody may free.
asleep, foreign = [], []
# The loop that was set: from Python 3.12 a forked child has none.
current = None
# Descriptors that imports opened.
taken = []
# Generators of random numbers that imports made, and that were seeded by the system only.
generators = []
# Where the state of numpy's own generator is, a Mersenne twister: 624 words of 32 bits, and which comes next. A child fills the words
# before it runs a line: to have numpy seed it would touch a hundred pages.
WORDS, WORD = 624, 4
twister = None


def watch_random():
    """Notes which generators imports make; gives what ends that. The random module reseeds its own, and no other."""
    made = {}

    def watch(random):
        own = random.Random.seed

        def seed(self, a=None, version=2):
            # One that was given a seed is to repeat itself.
            made.pop(id(self), None)
            if a is None:
                made[id(self)] = self
            return own(self, a, version)

        random.Random.seed = seed
        return lambda: setattr(random.Random, "seed", own)

    if "random" in sys.modules:
        undo = watch(sys.modules["random"])
    else:
        undo = _watch_import("random", watch)

    def end():
        undo()
        generators.extend(made.values())

    return end


def _watch_import(name, watch):
    """Calls `watch` with the module once it is imported; gives what ends that, and what `watch` gave."""
    ends = []

    class Finder:
        @staticmethod
        def find_spec(wanted, path=None, target=None):
            if wanted != name or Finder not in sys.meta_path:
                return None
            sys.meta_path.remove(Finder)
            from importlib.machinery import PathFinder

            spec = PathFinder.find_spec(wanted, path)
            if spec is not None:
                execute = spec.loader.exec_module

                def exec_module(module):
                    execute(module)
                    ends.append(watch(module))

                spec.loader.exec_module = exec_module
            return spec

    def end():
        if Finder in sys.meta_path:
            sys.meta_path.remove(Finder)
        for undo in ends:
            undo()

    sys.meta_path.insert(0, Finder)
    return end


def note():
    """The descriptors that are open: `settle` needs to know those from before the imports."""
    # One of those listed is the listing's own.
    return {fd for fd in map(int, os.listdir("/proc/self/fd")) if is_open(fd)}


def settle(before):
    """In the zygote, after its imports. It never runs a loop: there their descriptors are not needed."""
    global current
    events, selectors = sys.modules.get("asyncio.events"), sys.modules.get("asyncio.selector_events")
    base, own = getattr(events, "AbstractEventLoop", None), getattr(selectors, "BaseSelectorEventLoop", ())
    if base is not None:
        # By type(), since isinstance() asks lazy proxies, which run library code.
        for loop in [thing for thing in gc.get_objects() if issubclass(type(thing), base)]:
            if issubclass(type(loop), own) and hasattr(loop, "_make_self_pipe"):
                if not loop._closed:
                    for thing in (loop._selector, loop._ssock, loop._csock):
                        thing.close()
                    asleep.append(loop)
            else:
                foreign.append(loop)
        # Asking the policy itself would make one.
        policy = getattr(events, "_event_loop_policy", None)
        current = getattr(getattr(policy, "_local", None), "_loop", None)
    taken[:] = sorted(note() - before | set(taken))
    find_twister()


def find_twister():
    """In the zygote: where it is, if what is there is what numpy says of it."""
    global twister
    twister = None
    try:
        generator = sys.modules["numpy.random.mtrand"]._rand
        name, key, position, gauss, _ = generator.get_state()
        address = generator._bit_generator.ctypes.state_address
        held = ctypes.string_at(address, (WORDS + 1) * WORD)
    except Exception:
        return  # There is no numpy, or another one than those that are known.
    if name == "MT19937" and not gauss and held == key.tobytes() + position.to_bytes(WORD, sys.byteorder):
        twister = address


def reseeding():
    """Random numbers of a child's own, as system calls with their arguments."""
    return [] if twister is None else [("getrandom", twister, WORDS * WORD, 0)]


def is_open(fd):
    try:
        os.fstat(fd)
    except OSError:
        return False
    return True


def arrangement(fds, others=()):
    """How descriptors are arranged: 0 is /dev/null, those after it are `fds`, by name; /dev/null where imports had something; and no
    others but `others`. As system calls with their arguments.
    """
    # The lowest number that is free is 0 then. Every one of `fds` is above those here, which were open already in the zygote.
    steps = [("close", 0), ("openat", -100, NULL, os.O_RDWR)]
    last = len(fds)
    for number, name in enumerate(fds, 1):
        # The last one is the platform's own, which programs that are executed do not get.
        steps.append(("dup3", name, number, os.O_CLOEXEC if number > 2 else 0))
    free = last + 1
    for number in sorted({*taken, *others}):
        if free < number:
            steps.append(("close_range", free, number - 1, 0))
        if number in taken:
            steps.append(("dup3", 0, number, os.O_CLOEXEC))
        free = number + 1
    return steps + [("close_range", free, 0xffffffff, 0)]


def wake(loop):
    """A loop that was put asleep runs again, and whoever kept it finds it."""
    from selectors import DefaultSelector

    loop._selector = DefaultSelector()
    loop._internal_fds = 0
    loop._make_self_pipe()


def mend():
    """What has to differ between children of one parent, or does not survive a fork."""
    # The random module does so itself, by os.register_at_fork.
    seed = getattr(sys.modules.get("numpy.random"), "seed", None)
    if seed is not None and twister is None:
        seed()
    for generator in generators:
        generator.seed()
    for loop in asleep:
        wake(loop)
    if current is not None:
        policy = sys.modules["asyncio.events"]._event_loop_policy
        other = any(loop is current for loop in foreign)
        policy.set_event_loop(policy.new_event_loop() if other else current)
