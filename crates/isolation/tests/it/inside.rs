//! What a process in a container is, sees and may do.

use std::fs::File;
use std::io::Read;
use std::os::fd::AsFd;

use libtest_mimic::Failed;
use sock_isolation::{ContainerSpec, Profile};

use crate::Test;
use crate::shop::{Shop, pipe, program, spec};

pub(crate) const TESTS: &[Test] = &[
    ("inside::nobody_with_nothing", nobody),
    ("inside::the_host_is_out_of_sight", out_of_sight),
    ("inside::only_tmp_can_be_written", only_tmp),
    ("inside::set_up_calls_are_refused", refused),
    ("inside::sockets_of_other_families_are_refused", sockets),
    ("inside::no_descriptor_is_inherited", descriptors),
    ("inside::tmp_has_a_size", tmp_size),
    ("inside::strict_has_no_network_and_no_ipc", strict),
    ("inside::paper_is_a_chroot_and_lets_nobody_out", paper),
    ("inside::a_directory_that_leaked_in_leads_nowhere", leaked_directory),
    ("inside::the_root_as_the_kernel_lists_it", mounts),
];

fn python(code: &str, expected: &str) -> Result<(), Failed> {
    let shop = Shop::open()?;
    shop.python(code, expected)?;
    shop.close()
}

fn nobody() -> Result<(), Failed> {
    let code = r"
import os
for line in open('/proc/self/status'):
    if line.startswith(('Uid', 'Gid', 'Groups', 'Cap', 'NoNew', 'Seccomp:')):
        print(line.split())
print(os.getpid() < 10, os.getppid())
";
    let expected = "['Uid:', '1000', '1000', '1000', '1000']
['Gid:', '1000', '1000', '1000', '1000']
['Groups:']
['CapInh:', '0000000000000000']
['CapPrm:', '0000000000000000']
['CapEff:', '0000000000000000']
['CapBnd:', '0000000000000000']
['CapAmb:', '0000000000000000']
['NoNewPrivs:', '1']
['Seccomp:', '2']
True 1";
    python(code, expected)
}

fn out_of_sight() -> Result<(), Failed> {
    let code = r"
import os, socket
print(sorted(p for p in os.listdir('/proc') if p.isdigit()) == ['1', str(os.getpid())])
print([os.path.exists(p) for p in ('/etc/shadow', '/root', '/home', '/sys')])
print([l.split(':')[0].strip() for l in open('/proc/net/dev')][2:])
print(open('/proc/self/cgroup').read().splitlines()[-1])
print(socket.gethostname(), os.listdir('/var'))
print(len(open('/proc/kallsyms').read()), len(open('/proc/keys').read()))
";
    python(code, "True\n[False, False, False, False]\n['lo']\n0::/\ntest []\n0 0")
}

fn only_tmp() -> Result<(), Failed> {
    let code = r"
import errno
for d in ('/', '/usr', '/etc', '/dev', '/proc', '/var', '/var/task', '/sock', '/tmp', '/dev/shm'):
    try:
        open(d + '/x', 'w').close()
        print(d)
    except OSError as e:
        assert e.errno in (errno.EROFS, errno.EACCES, errno.ENOENT), (d, e)
for name in ('kernel/core_pattern', 'kernel/hostname', 'user/max_user_namespaces', 'vm/overcommit_memory'):
    try:
        open('/proc/sys/' + name, 'w').write('1')
        print(name)
    except OSError:
        pass
";
    python(code, "/tmp\n/dev/shm")
}

/// Each call by number, so that no library's own checks come first. 1 is EPERM, 38 ENOSYS.
#[cfg(target_arch = "x86_64")]
fn refused() -> Result<(), Failed> {
    let code = r"
import ctypes
libc = ctypes.CDLL(None, use_errno=True)
def call(name, number, *args):
    result = libc.syscall(number, *args)
    print(name, ctypes.get_errno() if result < 0 else 'made')
NEWUSER = 0x10000000
call('chroot', 161, b'/tmp')
call('mount', 165, b'none', b'/tmp', b'tmpfs', 0, None)
call('umount2', 166, b'/proc', 2)
call('pivot_root', 155, b'.', b'.')
call('unshare', 272, NEWUSER)
call('setns', 308, 0, 0)
call('clone', 56, NEWUSER | 17, 0, 0, 0, 0)
call('clone3', 435, 0, 0)
call('ptrace', 101, 0, 0, 0, 0)
call('process_vm_readv', 310, 1, 0, 0, 0, 0, 0)
call('bpf', 321, 0, 0, 0)
call('perf_event_open', 298, 0, 0, 0, 0, 0)
call('userfaultfd', 323, 0)
call('io_uring_setup', 425, 1, 0)
call('keyctl', 250, 0, 0)
call('open_tree', 428, -100, b'/', 1)
call('fsopen', 430, b'tmpfs', 0)
call('move_mount', 429, 0, b'', 0, b'', 0)
call('reboot', 169, 0, 0, 0)
call('init_module', 175, 0, 0, b'')
call('open_by_handle_at', 304, 0, 0, 0)
call('mknodat', 259, -100, b'/tmp/n', 0o20666, 259)
call('sethostname', 170, b'x', 1)
call('settimeofday', 164, 0, 0)
call('personality', 135, 0x40000)
call('setresuid', 117, 0, 0, 0)
call('kexec_load', 246, 0, 0, 0, 0)
call('pidfd_getfd', 438, 0, 0, 0)
";
    let shop = Shop::open()?;
    let (_, output) = shop.run(&["/usr/bin/python3", "-I", "-S", "-c", code])?;
    shop.close()?;
    let lines: Vec<&str> = output.lines().collect();
    assert_eq!(lines.len(), 28, "{output}");
    for line in lines {
        let expected = if line.starts_with("clone3 ") { " 38" } else { " 1" };
        assert!(line.ends_with(expected), "{line}");
    }
    Ok(())
}

#[cfg(not(target_arch = "x86_64"))]
fn refused() -> Result<(), Failed> {
    Err("the numbers of this test are x86_64's".into())
}

fn sockets() -> Result<(), Failed> {
    let code = r"
import socket as s
for family, kind in ((s.AF_INET, s.SOCK_RAW), (s.AF_PACKET, s.SOCK_DGRAM), (s.AF_NETLINK, s.SOCK_DGRAM),
                     (s.AF_VSOCK, s.SOCK_STREAM), (s.AF_ALG, s.SOCK_SEQPACKET), (s.AF_INET, s.SOCK_STREAM),
                     (s.AF_UNIX, s.SOCK_DGRAM)):
    try:
        s.socket(family, kind)
        print('made')
    except OSError as e:
        print(e.errno)
";
    python(code, "1\n1\n1\n1\n1\nmade\nmade")
}

fn descriptors() -> Result<(), Failed> {
    let code = r"
import os
print(sorted(int(f) for f in os.listdir('/proc/self/fd'))[:-1])
print([os.readlink('/proc/self/fd/%d' % f)[:5] for f in (0, 1, 2)])
";
    python(code, "[0, 1, 2]\n['/dev/', 'pipe:', 'pipe:']")
}

fn tmp_size() -> Result<(), Failed> {
    let code = r"
try:
    open('/tmp/big', 'wb').write(bytes(17 << 20))
except OSError as e:
    print(e.errno)
";
    python(code, "28")
}

fn mounts() -> Result<(), Failed> {
    let code = r"
# Kernels before 6.8 list mounts in another order.
for line in sorted(open('/proc/self/mountinfo'), key=lambda line: line.split()[4]):
    fields, _, system = line.partition(' - ')
    fields = fields.split()
    slave = 'slave' if any(f.startswith('master') for f in fields) else ''
    # What the host's own file systems are called is the host's affair.
    kind = '' if fields[4].startswith(('/usr', '/lib', '/bin', '/etc')) else system.split()[0]
    print(fields[4], fields[5].replace(',relatime', ''), slave, kind)
";
    let shop = Shop::open()?;
    let (_, output) = shop.run(&["/usr/bin/python3", "-I", "-S", "-c", code])?;
    shop.close()?;
    // Which files of proc there are to mask depends on the kernel.
    let lines = output.lines().filter(|line| !line.starts_with("/proc/"));
    let lines: Vec<String> =
        lines.map(|line| line.split_whitespace().collect::<Vec<_>>().join(" ")).collect();
    insta::assert_snapshot!(lines.join("\n"));
    Ok(())
}

/// Nobody passes one in. If somebody does, by a mistake of ours: what is beneath it is not beneath the container's root,
/// and refused by Landlock with EACCES (13). Without it the file, which everybody may read, would be read.
fn leaked_directory() -> Result<(), Failed> {
    let code = r"
import os
def opened(path, **where):
    try:
        os.close(os.open(path, os.O_RDONLY, **where))
        return 'opened'
    except OSError as e:
        return e.errno
print(opened('leaked', dir_fd=3), opened('../' * 9 + 'etc/passwd', dir_fd=3), opened('/etc/passwd'))
open('/tmp/a', 'w').close()
os.mkdir('/tmp/d')
os.rename('/tmp/a', '/tmp/d/b')
print(os.listdir('/tmp/d'))
";
    let shop = Shop::open()?;
    let outside = tempfile::tempdir()?;
    std::fs::set_permissions(outside.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755))?;
    std::fs::write(outside.path().join("leaked"), "")?;
    let (read, write) = pipe()?;
    let directory = File::open(outside.path())?;
    let null = File::open("/dev/null")?;
    let fds = [null.as_fd(), write.as_fd(), write.as_fd(), directory.as_fd()];
    let mut container = shop.workshop.create()?;
    container.start(&program(&["/usr/bin/python3", "-I", "-S", "-c", code]), &fds)?;
    drop(write);
    let mut said = String::new();
    File::from(read).read_to_string(&mut said)?;
    container.destroy()?;
    let expected = match sock_isolation::landlock::version() {
        Some(_) => "13 13 opened\n['b']\n",
        None => "opened opened opened\n['b']\n",
    };
    assert_eq!(said, expected);
    shop.close()
}

fn strict() -> Result<(), Failed> {
    let code = r"
import ctypes, os, socket, subprocess
libc = ctypes.CDLL(None, use_errno=True)
def outcome(action):
    try:
        return 'made' if action() != -1 else ctypes.get_errno()
    except OSError as e:
        return e.errno
print(outcome(lambda: socket.socket(socket.AF_INET)), outcome(lambda: socket.socket(socket.AF_UNIX)))
print(outcome(lambda: libc.shmget(0, 4096, 0o1600)), outcome(lambda: os.memfd_create('x')), os.listdir('/dev/shm'))
with open('/tmp/x', 'w') as file:
    file.write('#!/bin/sh\n')
os.chmod('/tmp/x', 0o755)
print(outcome(lambda: subprocess.run(['/tmp/x'])), outcome(lambda: subprocess.run(['/bin/true'])))
print(outcome(lambda: open('/dev/shm/x', 'w')))
";
    let shop = Shop::with(ContainerSpec { profile: Profile::Strict, ..spec() })?;
    shop.python(code, "1 made\n1 1 []\n13 made\n30")?;
    shop.close()
}

fn paper() -> Result<(), Failed> {
    let code = r"
import os, socket
status = dict(line.split(':', 1) for line in open('/proc/self/status'))
print(os.getuid() > 65536, status['CapEff'].strip(), status['NoNewPrivs'].strip(), status['Seccomp'].strip())
print(sorted(p for p in os.listdir('/proc') if p.isdigit()) == ['1', str(os.getpid())], socket.gethostname())
print(os.path.exists('/etc/shadow'), os.path.exists('/usr/bin/env'), os.listdir('/tmp'))
for attempt in (lambda: os.chroot('/tmp'), lambda: open('/usr/x', 'w'), lambda: os.listdir('/sock/paper')):
    try:
        print(attempt())
    except OSError as e:
        print(e.errno)
open('/tmp/x', 'w').close()
";
    let shop = Shop::with(ContainerSpec { profile: Profile::Paper, ..spec() })?;
    for _ in 0..2 {
        shop.python(code, "True 0000000000000000 1 2\nTrue test\nFalse True []\n1\n30\n[]")?;
    }
    shop.close()
}
