// SPDX-License-Identifier: Apache-2.0

internal import SystemPackage

/// The reason why a file cannot be used as an image, in words for the operator.
struct ImageError: Error, Equatable {
    let reason: String

    static func inUse(_ path: String) -> Self {
        Self(
            reason: "'\(path)' is in use by another program, or by another --device: "
                + "an image has one writer; 'readonly' in both lets them share it "
                + "(eject the medium of a stick before inserting it again)")
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

    /// An error of open(2), with a remedy where there is one.
    init(opening path: String, _ error: Errno) {
        switch error {
        case .noSuchFileOrDirectory:
            reason =
                "there is no '\(path)': create it, for example with `truncate -s 64M '\(path)'`"
        case .permissionDenied, .notPermitted, .readOnlyFileSystem:
            reason =
                "cannot open '\(path)' (\(error)): change its permissions, "
                + "or add 'readonly' for read access only"
        case .resourceBusy:
            reason = "'\(path)' is in use by the host, perhaps mounted: unmount it first"
        case .isDirectory: reason = "'\(path)' is a directory, not an image"
        case .noDevice: reason = "'\(path)' is neither a file nor a block device"
        default: reason = "cannot open '\(path)': \(error)"
        }
    }

    /// An error of a received descriptor.
    init(adopting path: String, _ error: Errno) {
        switch error {
        case .badFileDescriptor:
            reason =
                "the descriptor passed for '\(path)' was opened without the right to read or "
                + "write: open it for both, or add 'readonly' and open it for reading"
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
    /// `ENODEV`, which SystemPackage does not declare.
    fileprivate static let noDevice = Errno(rawValue: 19)
}
