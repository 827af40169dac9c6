// SPDX-License-Identifier: Apache-2.0

internal import SystemPackage

/// The remedy for an error of a system call that no option of the command line causes.
func remedy(_ error: Errno) -> String {
    switch error {
    case .tooManyOpenFiles: ": allow it more of them, for example with `ulimit -n 1024`"
    case .tooManyOpenFilesInSystem: ": raise /proc/sys/fs/file-max"
    case .noMemory: ": free memory, or raise the limit of this process or its container"
    default: ""
    }
}

/// The remedy for an error of `epoll_create1` or `epoll_ctl`.
func remedyForEvents(_ error: Errno) -> String {
    error == .noSpace ? ": raise /proc/sys/fs/epoll/max_user_watches" : remedy(error)
}
