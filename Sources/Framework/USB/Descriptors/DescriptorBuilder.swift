// SPDX-License-Identifier: Apache-2.0

/// Builds the bytes of one descriptor: `bLength`, `bDescriptorType`, then the fields that are
/// appended.
///
/// All descriptors of this module are built by it. A device builds its class descriptors with it
/// too:
///
///     let pipeUsage = DescriptorBuilder.bytes(of: DescriptorType(rawValue: 0x24)) {
///         $0.append(pipeID)
///         $0.append(UInt8(0))
///     }
public struct DescriptorBuilder {
    /// The bytes appended so far, behind the two of length and type.
    private var bytes: [UInt8]

    /// The number of bytes so far, with those of length and type.
    public var count: Int { bytes.count }

    private init(_ type: DescriptorType) { bytes = [0, type.rawValue] }

    /// The bytes of a descriptor whose fields `body` appends in the order of the specification.
    ///
    /// - Precondition: the descriptor has at most 255 bytes, which is what `bLength` can express.
    public static func bytes(
        of type: DescriptorType, _ body: (inout DescriptorBuilder) -> Void
    ) -> [UInt8] {
        var builder = DescriptorBuilder(type)
        body(&builder)
        precondition(builder.count <= 0xff, "a descriptor of \(builder.count) bytes")
        builder.bytes[0] = UInt8(builder.count)
        return builder.bytes
    }

    /// Appends a field of any width, least significant byte first.
    public mutating func append<Value: FixedWidthInteger & UnsignedInteger>(_ value: Value) {
        for index in 0..<MemoryLayout<Value>.size {
            bytes.append(UInt8(truncatingIfNeeded: value >> Value(8 * index)))
        }
    }

    /// Appends class, subclass and protocol, a byte each.
    public mutating func append(_ usbClass: USBClass) {
        append(usbClass.code)
        append(usbClass.subclass)
        append(usbClass.protocol)
    }

    /// Appends bytes as they are.
    public mutating func append(contentsOf bytes: some Sequence<UInt8>) {
        self.bytes.append(contentsOf: bytes)
    }
}
