// SPDX-License-Identifier: Apache-2.0

internal import CLinux
internal import Glibc
public import SystemPackage

/// A regular file or a block device, read and written at offsets.
///
/// Calls may come from any thread. Each may move fewer bytes than asked, as the kernel's do.
public struct RandomAccessFile: ~Copyable, Sendable {
    /// What lies behind the descriptor.
    public enum Kind: Sendable {
        case regular
        case blockDevice
    }

    /// How a file is opened.
    public struct OpenOptions: OptionSet, Sendable {
        public let rawValue: UInt8
        public init(rawValue: UInt8) { self.rawValue = rawValue }
        /// For writing too.
        public static let writable = OpenOptions(rawValue: 1)
        /// Past the page cache (`O_DIRECT`), which wants aligned memory, offsets and lengths.
        public static let direct = OpenOptions(rawValue: 2)
        /// Only if the host does not use the block device itself (`O_EXCL`); for a regular file it
        /// means nothing.
        public static let unusedByHost = OpenOptions(rawValue: 4)
    }

    public let descriptor: OwnedDescriptor
    public let kind: Kind
    /// Whether it is a file of a file system that is memory. Such a file cannot tell that an access
    /// would wait for a disk, because none does. A device's node lies in memory, too; its disk does not.
    private let isInMemory: Bool

    /// Opens what is at `path`.
    ///
    /// - Throws: `EISDIR` for a directory, `ENODEV` for what has no bytes at offsets (a pipe, a
    ///   terminal), otherwise what `open(2)` says.
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

    /// Takes over an open file that somebody else opened.
    ///
    /// - Throws: what ``init(opening:_:)`` throws for things without bytes at offsets; `EBADF` if it
    ///   was not opened for reading, and for writing if that is asked for; `EINVAL` if it was opened
    ///   in a way that changes what an offset means or how memory must lie (`O_APPEND`, `O_DIRECT`).
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

    /// Gives up the file for its descriptor.
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

    /// A path of the file behind the descriptor that this process can open, and the one under which
    /// the kernel knows it: the same for every way to name it.
    public func paths() throws(Errno) -> (openable: String, canonical: String) {
        let openable = "/proc/self/fd/\(descriptor.rawValue)"
        var bytes = [CChar](repeating: 0, count: 4097)
        let capacity = bytes.count
        let count = try systemCall { unsafe readlink(openable, &bytes, capacity) }
        let path = bytes.prefix(count).map { UInt8(bitPattern: $0) }
        return (openable, String(decoding: path, as: UTF8.self))
    }

    /// The bytes it has now.
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

    /// Takes an advisory lock that other processes see, without waiting.
    ///
    /// - Throws: `EWOULDBLOCK` if another open file has a lock that excludes this one.
    public func lock(exclusively: Bool) throws(Errno) {
        let number = descriptor.rawValue
        _ = try systemCall {
            exclusively ? clinux_lock_exclusively(number) : clinux_lock_shared(number)
        }
    }

    /// Fills the pieces; 0 is the end of the file.
    ///
    /// - Parameter waiting: whether to wait for a disk. If not, `EAGAIN` says that it would, and
    ///   `EOPNOTSUPP` that the file system cannot tell.
    public func read(
        into pieces: IOVectors, at offset: UInt64, waiting: Bool
    ) throws(Errno) -> Int {
        let number = descriptor.rawValue
        let flags: CInt = waiting || isInMemory ? 0 : CLINUX_RWF_NOWAIT
        return try systemCall {
            unsafe pieces.withVectors { vectors, count in
                unsafe clinux_preadv2(number, vectors, count, Int64(clamping: offset), flags)
            }
        }
    }

    /// Writes the pieces.
    ///
    /// - Parameters:
    ///   - durably: return only when the bytes are on the disk.
    ///   - waiting: see ``read(into:at:waiting:)``.
    public func write(
        _ pieces: IOVectors, at offset: UInt64, durably: Bool, waiting: Bool
    ) throws(Errno) -> Int {
        let number = descriptor.rawValue
        var flags: CInt = waiting || isInMemory ? 0 : CLINUX_RWF_NOWAIT
        if durably { flags |= CLINUX_RWF_DSYNC }
        return try systemCall {
            unsafe pieces.withVectors { vectors, count in
                unsafe clinux_pwritev2(number, vectors, count, Int64(clamping: offset), flags)
            }
        }
    }

    /// Returns when all that was written is on the disk. Corresponds to `fdatasync(2)`.
    public func synchronizeData() throws(Errno) {
        let number = descriptor.rawValue
        _ = try systemCall { fdatasync(number) }
    }

    /// Gives the range back to the file system or the device; it reads as zeroes afterwards.
    ///
    /// - Throws: `EOPNOTSUPP` where that cannot be had.
    public func punchHole(at offset: UInt64, count: UInt64) throws(Errno) {
        try allocate(CLINUX_FALLOC_PUNCH_HOLE | CLINUX_FALLOC_KEEP_SIZE, offset, count)
    }

    /// Makes the range read as zeroes and keeps its place on the disk.
    ///
    /// - Throws: `EOPNOTSUPP` where that is no faster than writing.
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
