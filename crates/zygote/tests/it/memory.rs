//! What a zygote does with its memory.

/// Where the kernel has huge pages: what is full is put into them, and what another process maps stays as it is.
#[test]
fn memory_of_ones_own_is_put_into_huge_pages() {
    let script = "
import mmap, os, re
import _sock_memory as memory

def huge():
    with open('/proc/self/smaps_rollup') as file:
        return int(re.search('AnonHugePages: +([0-9]+)', file.read())[1]) << 10

before = huge()
full, empty = mmap.mmap(-1, 8 << 20, mmap.MAP_PRIVATE), mmap.mmap(-1, 8 << 20, mmap.MAP_PRIVATE)
for at in range(0, len(full), 4096):
    full[at] = at // 4096 % 251
if os.fork() == 0:
    memory.collapse()
    os._exit(huge() != before)
assert os.wait()[1] == 0, 'what is shared was copied'
memory.collapse()
if os.path.exists('/sys/kernel/mm/transparent_hugepage'):
    assert 4 << 20 <= huge() - before <= 12 << 20, (before, huge())
assert all(full[at] == at // 4096 % 251 for at in range(0, len(full), 4096))
assert not any(empty[::4096])
";
    assert_eq!(crate::run(script), "");
}

#[test]
fn what_is_used_is_put_side_by_side_and_does_what_it_did() {
    let script = "
import _sock_memory as memory

def used(first, *, second=2):
    def inner():
        return first + second
    return inner()

def unused():
    return 1

environment = {b'NAME': b'a value', b'OTHER': b''}
before = used.__code__, unused.__code__, {name: (id(name), id(value)) for name, value in environment.items()}
same = environment
memory.gather(lambda: used(1), environment)
assert used.__code__ is not before[0] and unused.__code__ is before[1]
assert used(1) == 3 and used(1, second=5) == 6
assert environment is same and environment == {b'NAME': b'a value', b'OTHER': b''}
assert all(id(name) != before[2][name][0] for name in environment)
";
    assert_eq!(crate::run(script), "");
}
