// SPDX-License-Identifier: Apache-2.0

public import Platform
public import SystemPackage

/// The reason why a region cannot be added to ``GuestMemory``.
public enum MapError: Error, Equatable, CustomStringConvertible {
    /// The range is empty or wraps around.
    case invalidRange
    /// The range overlaps the region from `first` to `last`.
    case overlap(first: GuestAddress, last: GuestAddress)
    /// ``DMALimits/regions`` regions exist.
    case tooManyRegions
    /// The file cannot be mapped.
    case mapping(MappingError)

    /// The errno of the error.
    public var errno: Errno {
        switch self {
        case .invalidRange: .invalidArgument
        case .overlap: .fileExists
        case .tooManyRegions: .tooManyOpenFiles
        case .mapping(let error): error.errno
        }
    }

    /// The reason in words.
    public var description: String {
        switch self {
        case .invalidRange: "the range is empty or wraps around"
        case .overlap(let first, let last): "the range overlaps \(first)-\(last), which is mapped"
        case .tooManyRegions: "\(DMALimits.regions) regions exist, the most possible"
        case .mapping(let error): "\(error)"
        }
    }
}
