// SPDX-License-Identifier: Apache-2.0

/// Descriptors that came with a message, in the order in which they were sent.
///
/// Whoever needs one takes it; what nobody took is closed with the list.
public struct DescriptorList: ~Copyable, Sendable {
    /// What was taken is −1.
    private var numbers: [CInt] = []
    /// Whether the peer sent more than could be received; the kernel has closed the others.
    public var isTruncated = false

    /// An empty list.
    public init() {}

    deinit {
        for number in numbers where number >= 0 { _ = OwnedDescriptor(owning: number) }
    }

    /// How many were sent, taken ones included.
    public var count: Int { numbers.count }

    public var isEmpty: Bool { numbers.isEmpty }

    /// Hands over the descriptor at a place; `nil` if there is none or it was taken before.
    public mutating func take(_ index: Int) -> OwnedDescriptor? {
        guard numbers.indices.contains(index), numbers[index] >= 0 else { return nil }
        let number = numbers[index]
        numbers[index] = -1
        return OwnedDescriptor(owning: number)
    }

    /// Adds a descriptor at the end.
    public mutating func append(_ descriptor: consuming OwnedDescriptor) {
        numbers.append(descriptor.release())
    }

    /// Closes all and forgets them.
    public mutating func removeAll() { self = DescriptorList() }
}
