// SPDX-License-Identifier: Apache-2.0

public import SystemPackage

/// The reason why ``Mapping`` cannot map a range of a file.
public enum MappingError: Error, Equatable, CustomStringConvertible {
    /// The range is empty, or larger than the address space of this process.
    case invalidRange
    /// The range extends past the end of the file.
    case pastEndOfFile(fileSize: UInt64)
    /// The offset is not a multiple of the file's page size in bytes.
    case misalignedOffset(pageSize: UInt64)
    /// The maximum number of mappings exists.
    case tooManyMappings
    /// A system call failed.
    case failed(Errno)

    /// The errno of the error.
    public var errno: Errno {
        switch self {
        case .invalidRange, .pastEndOfFile, .misalignedOffset: .invalidArgument
        case .tooManyMappings: .noMemory
        case .failed(let error): error
        }
    }

    /// The reason in words.
    public var description: String {
        switch self {
        case .invalidRange: "the range is empty or too large"
        case .pastEndOfFile(let size): "the range ends past the end of the file at byte \(size)"
        case .misalignedOffset(let size):
            "the offset in the file is not a multiple of its page size of \(size) bytes"
        case .tooManyMappings: "\(Mapping.limit) memory regions are mapped, the most possible"
        case .failed(let error): "\(error)"
        }
    }
}
