//! The system calls that nobody in a container may make, by families, and why each is left out.
//!
//! EPERM where a program should learn that it may not, ENOSYS where it does better not to know the call: then it does what programs did
//! before there was one. A test sees to it that each call of the kernel's is either allowed somewhere or has its reason here.

use crate::bpf::Verdict;

const EPERM: Verdict = Verdict::Errno(libc::EPERM as u16);
const ENOSYS: Verdict = Verdict::Errno(libc::ENOSYS as u16);

pub(super) struct Family {
    pub(super) why: &'static str,
    pub(super) answer: Verdict,
    pub(super) calls: &'static [&'static str],
}

pub(super) const FAMILIES: &[Family] = &[
    Family {
        why: "the root is finished before anything untrusted runs in it: only an escape needs to change it",
        answer: EPERM,
        calls: names![
            mount umount2 pivot_root chroot fsopen fsconfig fsmount fspick open_tree move_mount mount_setattr
        ],
    },
    Family {
        why: "a new user namespace gives back every capability inside it, and with it most of the kernel's attack surface. (A \
              zygote enters slots; what keeps it from a user namespace of its own is that its root is covered.)",
        answer: EPERM,
        calls: names![
            unshare setns
        ],
    },
    Family {
        why: "its flags, a new namespace among them, lie behind a pointer, which no filter follows: C libraries then use clone, whose \
              flags it sees",
        answer: ENOSYS,
        calls: names![clone3],
    },
    Family {
        why: "no debugging of neighbours, nor any other reach into their memory and descriptors",
        answer: EPERM,
        calls: names![
            ptrace process_vm_readv process_vm_writev process_madvise pidfd_getfd kcmp
        ],
    },
    Family {
        why: "large and often exploited parts of the kernel; io_uring also performs calls that no filter sees",
        answer: EPERM,
        calls: names![
            bpf perf_event_open userfaultfd io_uring_setup io_uring_enter io_uring_register
        ],
    },
    Family {
        why: "keyrings are not namespaced",
        answer: EPERM,
        calls: names![
            keyctl add_key request_key
        ],
    },
    Family {
        why: "what runs in the kernel, the machine's clock, disks, names, terminals and logs are the machine's own",
        answer: EPERM,
        calls: names![
            init_module finit_module delete_module kexec_load reboot swapon swapoff quotactl acct syslog
            settimeofday clock_settime clock_adjtime adjtimex sethostname setdomainname vhangup lookup_dcookie
            nfsservctl
        ],
    },
    Family {
        why: "a handle opens by inode, past every mount",
        answer: EPERM,
        calls: names![
            open_by_handle_at name_to_handle_at
        ],
    },
    Family {
        why: "device files; and extended attributes, which carry capabilities and labels, and which tmpfs keeps in memory of the kernel's",
        answer: EPERM,
        calls: names![
            mknodat setxattr lsetxattr fsetxattr removexattr lremovexattr fremovexattr
        ],
    },
    Family {
        why: "who a process is was settled before it began, and is not for it to change. (A zygote's child drops once more.)",
        answer: EPERM,
        calls: names![
            setuid setgid setreuid setregid setresuid setresgid setfsuid setfsgid setgroups capset
        ],
    },
    Family { why: "sees what others open, on all of a mount", answer: EPERM, calls: names![fanotify_init] },
    Family {
        why: "real-time classes keep processors and disks from all others; pages are moved for a whole process, whoever's it is",
        answer: EPERM,
        calls: names![
            migrate_pages move_pages sched_setscheduler sched_setparam sched_setattr ioprio_set
        ],
    },
    Family {
        why: "other names of what is refused above: whoever finds one missing tries the usual one",
        answer: ENOSYS,
        calls: names![
            fanotify_mark kexec_file_load quotactl_fd mknod open_tree_attr setxattrat removexattrat
            file_setattr process_mrelease
        ],
    },
    Family {
        why: "tell of all mounts, and of the kernel's modules for security",
        answer: ENOSYS,
        calls: names![
            listmount statmount lsm_get_self_attr lsm_set_self_attr lsm_list_modules
        ],
    },
    Family {
        why: "writes back what everybody has written, as often as one asks: fsync does one's own",
        answer: ENOSYS,
        calls: names![
            sync syncfs
        ],
    },
    Family {
        why: "an older way to read without waiting, large and hardly used: who finds none reads as usual",
        answer: ENOSYS,
        calls: names![
            io_setup io_submit io_cancel io_destroy io_getevents io_pgetevents
        ],
    },
    Family {
        why: "the processor's ports and tables of segments, for emulators of old programs",
        answer: ENOSYS,
        calls: names![
            iopl ioperm modify_ldt get_thread_area set_thread_area
        ],
    },
    Family {
        why: "newer than what programs need, or told to nobody: C libraries do without",
        answer: ENOSYS,
        calls: names![
            fchmodat2 file_getattr getxattrat listxattrat futex_wake futex_wait futex_requeue futex_waitv
            map_shadow_stack mseal memfd_secret set_mempolicy_home_node sched_getattr ioprio_get uprobe
            uretprobe
        ],
    },
    Family {
        why: "older than any program here, or never written",
        answer: ENOSYS,
        calls: names![
            _sysctl afs_syscall create_module epoll_ctl_old epoll_wait_old get_kernel_syms getpmsg putpmsg
            query_module remap_file_pages security sysfs tuxcall uselib ustat vserver
        ],
    },
];
