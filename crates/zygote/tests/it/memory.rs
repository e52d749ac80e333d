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
