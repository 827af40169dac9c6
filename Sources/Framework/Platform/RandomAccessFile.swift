// SPDX-License-Identifier: Apache-2.0

internal import CLinux
internal import Glibc
public import SystemPackage

/// A regular file or a block device that is read and written at offsets.
///
/// Any thread may call its functions. Offsets and lengths are in bytes. A read or write may
/// transfer fewer bytes than requested.
public struct RandomAccessFile: ~Copyable, Sendable {
    /// The type of a file (inode(7)).
    public enum Kind: Sendable {
        /// A regular file (`S_IFREG`).
        case regular
        /// A block device, such as a disk or a partition (`S_IFBLK`).
        case blockDevice
    }

    /// Options for opening a file; see open(2).
    public struct OpenOptions: OptionSet, Sendable {
        /// The options as bits.
        public let rawValue: UInt8

        /// Creates a set of options from bits.
        public init(rawValue: UInt8) { self.rawValue = rawValue }

        /// Opens the file for reading and writing (`O_RDWR`); without it, for reading (`O_RDONLY`).
        public static let writable = OpenOptions(rawValue: 1)
        /// Bypasses the page cache (`O_DIRECT`).
        ///
        /// Memory, offsets and lengths must be aligned.
        public static let direct = OpenOptions(rawValue: 2)
        /// Fails with `EBUSY` if the host uses the block device, for a mounted file system for
        /// example (`O_EXCL`).
        ///
        /// It has no effect on a regular file.
        public static let unusedByHost = OpenOptions(rawValue: 4)
    }

    /// The open file, for system calls that this type does not offer.
    public let descriptor: OwnedDescriptor
    /// The type of the file.
    public let kind: Kind
    /// Whether the file lies in a file system without a disk, such as tmpfs.
    ///
    /// Such a file system refuses `RWF_NOWAIT`, and its files never need it. A block device is
    /// never in memory, although its node lies in devtmpfs.
    private let isInMemory: Bool

    /// Opens the file at a path.
    ///
    /// It does not block, and does not make a terminal the controlling one.
    ///
    /// - Throws: `EISDIR` for a directory, `ENODEV` for any other file that is neither a regular
    ///   file nor a block device, otherwise the errno of open(2).
    public init(opening path: String, _ options: OpenOptions) throws(Errno) {
        var flags = O_CLOEXEC | O_NOCTTY | O_NONBLOCK
        flags |= options.contains(.writable) ? O_RDWR : O_RDONLY
        if options.contains(.unusedByHost) { flags |= O_EXCL }
        if options.contains(.direct) { flags |= clinux_o_direct }
        let file = OwnedDescriptor(owning: try systemCall { unsafe open(path, flags) })
        kind = try Self.kind(of: file)
        isInMemory = kind == .regular && clinux_is_in_memory(file.rawValue)
        descriptor = file
    }

    /// Takes over a file that another process has opened.
    ///
    /// - Throws: `EBADF` if the file was not opened for reading, or not for writing although
    ///   `writable` is set; `EINVAL` if it was opened with `O_APPEND`, which ignores offsets, or
    ///   `O_DIRECT`; `EISDIR` and `ENODEV` as ``init(opening:_:)`` does.
    public init(adopting file: consuming OwnedDescriptor, writable: Bool) throws(Errno) {
        let kind = try Self.kind(of: file)
        let number = file.rawValue
        let flags = try systemCall { fcntl(number, F_GETFL) }
        let access = flags & O_ACCMODE
        guard access == O_RDWR || access == O_RDONLY && !writable, flags & clinux_o_path == 0 else {
            throw .badFileDescriptor
        }
        guard flags & (O_APPEND | clinux_o_direct) == 0 else { throw .invalidArgument }
        self.kind = kind
        isInMemory = kind == .regular && clinux_is_in_memory(number)
        descriptor = file
    }

    /// Ends the use as a file and returns the descriptor.
    public consuming func release() -> OwnedDescriptor { descriptor }

    private static func kind(of file: borrowing OwnedDescriptor) throws(Errno) -> Kind {
        var status = stat()
        let number = file.rawValue
        _ = try systemCall { unsafe fstat(number, &status) }
        switch status.st_mode & S_IFMT {
        case S_IFREG: return .regular
        case S_IFBLK: return .blockDevice
        case S_IFDIR: throw .isDirectory
        default: throw Errno(rawValue: ENODEV)
        }
    }

    /// Two paths of the file; see proc_pid_fd(5).
    ///
    /// - Returns: `openable` opens the file in this process, even if the file was renamed or
    ///   deleted. `canonical` is the kernel's path of the file, without symbolic links.
    /// - Throws: the errno of readlink(2).
    public func paths() throws(Errno) -> (openable: String, canonical: String) {
        let openable = "/proc/self/fd/\(descriptor.rawValue)"
        var bytes = [CChar](repeating: 0, count: 4097)
        let capacity = bytes.count
        let count = try systemCall { unsafe readlink(openable, &bytes, capacity) }
        let path = bytes.prefix(count).map { UInt8(bitPattern: $0) }
        return (openable, String(decoding: path, as: UTF8.self))
    }

    /// The current size in bytes (fstat(2), for a block device `BLKGETSIZE64`).
    ///
    /// - Throws: the errno of fstat(2) or ioctl(2).
    public func size() throws(Errno) -> UInt64 {
        let number = descriptor.rawValue
        if kind == .blockDevice {
            var bytes: UInt64 = 0
            _ = try systemCall { unsafe clinux_block_device_size(number, &bytes) }
            return bytes
        }
        var status = stat()
        _ = try systemCall { unsafe fstat(number, &status) }
        return UInt64(clamping: status.st_size)
    }

    /// Takes an advisory lock on the open file without blocking; see flock(2).
    ///
    /// A file has one lock: a second call converts it.
    ///
    /// - Parameter exclusively: whether to exclude all other locks, or only exclusive ones.
    /// - Throws: `EWOULDBLOCK` if another open file holds a conflicting lock.
    public func lock(exclusively: Bool) throws(Errno) {
        let number = descriptor.rawValue
        _ = try systemCall {
            exclusively ? clinux_lock_exclusively(number) : clinux_lock_shared(number)
        }
    }

    /// Reads into memory segments; see preadv2(2).
    ///
    /// - Parameters:
    ///   - segments: the memory to fill.
    ///   - offset: the offset of the first byte in the file.
    ///   - waiting: whether to block until the disk has the data. If `false`, only data in the page
    ///     cache is read (`RWF_NOWAIT`).
    /// - Returns: the number of bytes read; 0 at the end of the file.
    /// - Throws: if `waiting` is `false`, `EAGAIN` if the call would block and `EOPNOTSUPP` if the
    ///   file system does not support `RWF_NOWAIT`; otherwise the errno of preadv2(2), such as
    ///   `EIO`.
    public func read(
        into segments: IOVectors, at offset: UInt64, waiting: Bool
    ) throws(Errno) -> Int {
        let number = descriptor.rawValue
        let flags: CInt = waiting || isInMemory ? 0 : CLINUX_RWF_NOWAIT
        return try systemCall {
            unsafe segments.withVectors { vectors, count in
                unsafe clinux_preadv2(number, vectors, count, Int64(clamping: offset), flags)
            }
        }
    }

    /// Writes memory segments; see pwritev2(2).
    ///
    /// - Parameters:
    ///   - segments: the data.
    ///   - offset: the offset of the first byte in the file.
    ///   - durably: whether to return only when the data is on stable storage (`RWF_DSYNC`).
    ///   - waiting: whether to block, as in ``read(into:at:waiting:)``.
    /// - Returns: the number of bytes written.
    /// - Throws: `EAGAIN` and `EOPNOTSUPP` as ``read(into:at:waiting:)`` does; otherwise the errno
    ///   of pwritev2(2), such as `EIO`, `ENOSPC` and `EFBIG`.
    public func write(
        _ segments: IOVectors, at offset: UInt64, durably: Bool, waiting: Bool
    ) throws(Errno) -> Int {
        let number = descriptor.rawValue
        var flags: CInt = waiting || isInMemory ? 0 : CLINUX_RWF_NOWAIT
        if durably { flags |= CLINUX_RWF_DSYNC }
        return try systemCall {
            unsafe segments.withVectors { vectors, count in
                unsafe clinux_pwritev2(number, vectors, count, Int64(clamping: offset), flags)
            }
        }
    }

    /// Blocks until all written data is on stable storage; see fdatasync(2).
    ///
    /// - Throws: `EIO` if data was lost, also by an earlier write, and the other errnos of
    ///   fdatasync(2).
    public func synchronizeData() throws(Errno) {
        let number = descriptor.rawValue
        _ = try systemCall { fdatasync(number) }
    }

    /// Deallocates a range, which then reads as zeroes (`FALLOC_FL_PUNCH_HOLE`, fallocate(2)).
    ///
    /// The size of the file stays as it is.
    ///
    /// - Throws: `EOPNOTSUPP` if the file system or the device does not support it, otherwise the
    ///   errno of fallocate(2).
    public func punchHole(at offset: UInt64, count: UInt64) throws(Errno) {
        try allocate(CLINUX_FALLOC_PUNCH_HOLE | CLINUX_FALLOC_KEEP_SIZE, offset, count)
    }

    /// Zeroes a range and keeps its space allocated (`FALLOC_FL_ZERO_RANGE`, fallocate(2)).
    ///
    /// The size of the file stays as it is.
    ///
    /// - Throws: `EOPNOTSUPP` if the file system or the device does not support it, otherwise the
    ///   errno of fallocate(2).
    public func zeroRange(at offset: UInt64, count: UInt64) throws(Errno) {
        try allocate(CLINUX_FALLOC_ZERO_RANGE | CLINUX_FALLOC_KEEP_SIZE, offset, count)
    }

    private func allocate(_ mode: CInt, _ offset: UInt64, _ count: UInt64) throws(Errno) {
        let number = descriptor.rawValue
        _ = try systemCall {
            clinux_fallocate(number, mode, Int64(clamping: offset), Int64(clamping: count))
        }
    }
}
