// SPDX-License-Identifier: Apache-2.0

/// The file descriptors that arrived with a message (`SCM_RIGHTS`, unix(7)), in the order they were
/// sent.
///
/// A descriptor leaves the list with ``take(_:)``. The list closes the remaining ones when it is
/// destroyed.
public struct DescriptorList: ~Copyable, Sendable {
    /// The kernel's numbers; −1 for a descriptor that was taken.
    private var numbers: [CInt] = []
    /// Whether the peer sent more descriptors than were received (`MSG_CTRUNC`, recvmsg(2)).
    ///
    /// The kernel has closed the others.
    public var isTruncated = false

    /// Creates an empty list.
    public init() {}

    deinit {
        for number in numbers where number >= 0 { _ = OwnedDescriptor(owning: number) }
    }

    /// The number of descriptors received, taken ones included.
    public var count: Int { numbers.count }

    /// Whether no descriptor was received.
    public var isEmpty: Bool { numbers.isEmpty }

    /// Removes and returns the descriptor at an index.
    ///
    /// - Returns: `nil` if the index is out of range or the descriptor was taken before.
    public mutating func take(_ index: Int) -> OwnedDescriptor? {
        guard numbers.indices.contains(index), numbers[index] >= 0 else { return nil }
        let number = numbers[index]
        numbers[index] = -1
        return OwnedDescriptor(owning: number)
    }

    /// Appends a descriptor and takes over its ownership.
    public mutating func append(_ descriptor: consuming OwnedDescriptor) {
        numbers.append(descriptor.release())
    }

    /// Closes all descriptors that were not taken, and empties the list.
    public mutating func removeAll() { self = DescriptorList() }
}
