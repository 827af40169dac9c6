// SPDX-License-Identifier: Apache-2.0

internal import Platform
internal import SystemPackage

/// A medium that is a file or a block device of the host.
final class FileImage: DiskImage {
    /// What is between a write and the disk.
    enum CacheMode: String, CaseIterable, Sendable {
        /// The page cache, until the guest flushes.
        case writeback
        /// Nothing: a write is answered when the disk has it.
        case writethrough
        /// The disk's own cache only (`O_DIRECT`), until the guest flushes.
        case none
    }

    let byteCount: UInt64
    let isReadOnly: Bool
    /// The file under its only name.
    let path: String

    private let file: RandomAccessFile
    /// Past the page cache, for what is aligned; the rest goes through ``file``.
    private let directFile: RandomAccessFile?
    /// Why the page cache is used although it was to be avoided.
    let directProblem: Errno?

    private var isDirect: Bool { directFile != nil }

    /// 2^48 bytes.
    static let largestSize: UInt64 = 1 << 48

    /// Opens and locks an image.
    convenience init(path: String, readOnly: Bool, cache: CacheMode) throws(ImageError) {
        try self.init(
            Self.open(path, readOnly: readOnly), named: path, readOnly: readOnly, cache: cache)
    }

    /// Locks an image that somebody else has opened; `path` is what the operator calls it.
    convenience init(
        _ descriptor: consuming OwnedDescriptor, named path: String, readOnly: Bool,
        cache: CacheMode
    ) throws(ImageError) {
        let file: RandomAccessFile
        do throws(Errno) {
            file = try RandomAccessFile(adopting: descriptor, writable: !readOnly)
        } catch {
            throw ImageError(adopting: path, error)
        }
        try self.init(file, named: path, readOnly: readOnly, cache: cache)
    }

    private init(
        _ file: consuming RandomAccessFile, named path: String, readOnly: Bool, cache: CacheMode
    ) throws(ImageError) {
        do throws(Errno) {
            try file.lock(exclusively: !readOnly)
        } catch {
            throw error == .wouldBlock ? .inUse(path) : .cannot("lock", path, error)
        }
        let paths: (openable: String, canonical: String)
        do throws(Errno) {
            byteCount = try file.size()
            paths = try file.paths()
        } catch {
            throw .cannot("look at", path, error)
        }
        self.path = paths.canonical
        isReadOnly = readOnly
        guard byteCount > 0 else { throw .empty(path) }
        guard byteCount % UInt64(blockSize) == 0 else { throw .oddSize(path, byteCount) }
        guard byteCount <= Self.largestSize else { throw .tooLarge(path, byteCount) }
        var direct: RandomAccessFile?
        var directProblem: Errno?
        if cache == .none {
            do throws(Errno) {
                direct = try RandomAccessFile(
                    opening: paths.openable, readOnly ? [.direct] : [.direct, .writable])
            } catch {
                directProblem = error
            }
        }
        directFile = direct
        self.directProblem = directProblem
        self.file = file
    }

    /// Opens what an image is made of.
    static func open(_ path: String, readOnly: Bool) throws(ImageError) -> RandomAccessFile {
        do throws(Errno) {
            return try RandomAccessFile(
                opening: path, readOnly ? [] : [.writable, .unusedByHost])
        } catch {
            throw ImageError(opening: path, error)
        }
    }

    /// The path that means the same image for everybody.
    static func canonicalPath(
        _ file: borrowing RandomAccessFile, named path: String
    ) throws(ImageError) -> String {
        do throws(Errno) { return try file.paths().canonical } catch {
            throw .cannot("look at", path, error)
        }
    }

    func read(into pieces: IOVectors, at offset: UInt64, waiting: Bool) throws(Errno) -> Int {
        guard isDirect else { return try file.read(into: pieces, at: offset, waiting: waiting) }
        // A direct access always waits for the disk.
        guard waiting else { throw .wouldBlock }
        if suitsDirect(pieces, offset),
            let count = try directFile?.read(into: pieces, at: offset, waiting: true)
        {
            return count
        }
        return try file.read(into: pieces, at: offset, waiting: true)
    }

    func write(
        _ pieces: IOVectors, at offset: UInt64, durably: Bool, waiting: Bool
    ) throws(Errno) -> Int {
        guard isDirect else {
            return try file.write(pieces, at: offset, durably: durably, waiting: waiting)
        }
        guard waiting else { throw .wouldBlock }
        if suitsDirect(pieces, offset),
            let count = try directFile?.write(
                pieces, at: offset, durably: durably, waiting: true)
        {
            return count
        }
        return try file.write(pieces, at: offset, durably: durably, waiting: true)
    }

    /// A page is enough for every disk; what is less well aligned takes the page cache.
    private func suitsDirect(_ pieces: IOVectors, _ offset: UInt64) -> Bool {
        offset % 4096 == 0 && pieces.isAligned(to: 4096)
    }

    func flush() throws(Errno) { try file.synchronizeData() }

    func punchHole(at offset: UInt64, count: UInt64) throws(Errno) {
        try file.punchHole(at: offset, count: count)
    }

    func zeroRange(at offset: UInt64, count: UInt64) throws(Errno) {
        try file.zeroRange(at: offset, count: count)
    }
}

/// Why an image cannot be used, for the operator.
struct ImageError: Error, Equatable {
    let reason: String

    static func inUse(_ path: String) -> Self {
        Self(
            reason: "'\(path)' is in use by another program, or by another --device: "
                + "an image can be written by one only; 'readonly' in both lets them share it "
                + "(a stick's own medium is ejected before it is inserted anew)")
    }

    static func empty(_ path: String) -> Self {
        Self(
            reason:
                "'\(path)' is empty: give it a size, for example with `truncate -s 64M '\(path)'`"
        )
    }

    static func oddSize(_ path: String, _ size: UInt64) -> Self {
        Self(
            reason: "'\(path)' has \(size) bytes, which is not a multiple of \(blockSize): "
                + "round it up with `truncate -s %\(blockSize) '\(path)'`")
    }

    static func tooLarge(_ path: String, _ size: UInt64) -> Self {
        Self(
            reason: "'\(path)' has \(size) bytes; a stick has at most \(FileImage.largestSize)")
    }

    static func cannot(_ verb: String, _ path: String, _ error: Errno) -> Self {
        Self(reason: "cannot \(verb) '\(path)': \(error)")
    }

    private init(reason: String) { self.reason = reason }

    /// What `open(2)` said, with a way out where there is one.
    init(opening path: String, _ error: Errno) {
        switch error {
        case .noSuchFileOrDirectory:
            reason = "there is no '\(path)': make it, for example with `truncate -s 64M '\(path)'`"
        case .permissionDenied, .notPermitted, .readOnlyFileSystem:
            reason =
                "'\(path)' may not be opened so (\(error)): change its permissions, "
                + "or add 'readonly' if it is only to be read"
        case .resourceBusy:
            reason = "'\(path)' is in use by the host, perhaps mounted: unmount it first"
        case .isDirectory: reason = "'\(path)' is a directory, not an image"
        case .noDevice: reason = "'\(path)' is neither a file nor a block device"
        default: reason = "cannot open '\(path)': \(error)"
        }
    }

    /// Why a descriptor that was passed along is none of an image.
    init(adopting path: String, _ error: Errno) {
        switch error {
        case .badFileDescriptor:
            reason =
                "the descriptor passed for '\(path)' was opened without the right to read or write: "
                + "open it for both, or add 'readonly' and open it for reading"
        case .invalidArgument:
            reason =
                "the descriptor passed for '\(path)' was opened with O_APPEND or O_DIRECT: "
                + "open it without"
        case .isDirectory, .noDevice:
            reason = "the descriptor passed for '\(path)' is neither a file nor a block device"
        default: reason = "cannot use the descriptor passed for '\(path)': \(error)"
        }
    }
}

extension Errno {
    /// `ENODEV`, which the library leaves out.
    fileprivate static let noDevice = Errno(rawValue: 19)
}
