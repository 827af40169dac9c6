// SPDX-License-Identifier: Apache-2.0

/// One descriptor in a byte array, of any type (USB 2.0, 9.5).
///
/// The bytes may come from a hostile device. Only the first two are sure to exist.
public struct RawDescriptor: Hashable, Sendable {
    /// The offset of the descriptor's first byte in the array that was parsed.
    public let offset: Int
    /// The descriptor, from `bLength` on: at least 2 bytes, at most 255.
    public let bytes: [UInt8]

    /// `bDescriptorType`.
    public var type: DescriptorType { DescriptorType(rawValue: bytes[1]) }

    /// The byte at `field`, an offset within the descriptor; `nil` if the descriptor is shorter.
    ///
    /// The offsets have names: ``ConfigurationDescriptor/Field``, ``InterfaceDescriptor/Field``,
    /// ``EndpointDescriptor/Field``, ``SuperSpeedCompanion/Field``.
    public subscript(field: Int) -> UInt8? {
        bytes.indices.contains(field) ? bytes[field] : nil
    }

    /// The two-byte field at an offset, least significant byte first.
    ///
    /// The caller has checked the length.
    func word(at field: Int) -> UInt16 { UInt16(bytes[field]) | UInt16(bytes[field + 1]) << 8 }
}

/// The descriptors in a byte array, one after the other.
///
/// The array may contain any bytes, for example the part of a configuration that a host requested.
/// Only the length byte of each descriptor is used, never a count or a total length of another one.
/// Iteration ends at the end of the array or at a descriptor whose length is below 2, and no
/// descriptor reaches beyond the array. A short one is not skipped: its reader checks that a field
/// exists.
public struct DescriptorSequence: Sequence, IteratorProtocol {
    private let bytes: [UInt8]
    private let includesTruncated: Bool
    private var position = 0

    /// The descriptors in `bytes`.
    ///
    /// - Parameters:
    ///   - bytes: descriptors, one after the other.
    ///   - includesTruncated: whether a last descriptor that is longer than the rest of the array
    ///     is included, with the bytes that are there. A host may ask for fewer bytes than a
    ///     configuration has. By default the sequence ends before such a descriptor.
    public init(_ bytes: [UInt8], includesTruncated: Bool = false) {
        self.bytes = bytes
        self.includesTruncated = includesTruncated
    }

    /// The next descriptor; `nil` at the end.
    public mutating func next() -> RawDescriptor? {
        let available = bytes.count - position
        guard available >= 2 else { return nil }
        let length = Int(bytes[position])
        guard length >= 2, includesTruncated || length <= available else { return nil }
        let offset = position
        position += Swift.min(length, available)
        return RawDescriptor(offset: offset, bytes: Array(bytes[offset..<position]))
    }
}
