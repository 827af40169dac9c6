// SPDX-License-Identifier: Apache-2.0

internal import USB

/// An error in a descriptor that the device sends.
enum DescriptorFault: String, CaseIterable {
    /// The device sends only the first half of the descriptor.
    case truncated
    /// A length field is larger than the descriptor.
    case overlong
    /// Fields contradict each other and the specification.
    case contradictory

    /// The descriptors that faults can apply to.
    enum Subject: String, CaseIterable {
        case device = "device-descriptor"
        case configuration = "configuration-descriptor"

        init?(_ type: DescriptorType) {
            switch type {
            case .device: self = .device
            case .configuration: self = .configuration
            default: return nil
            }
        }
    }

    /// The effect that the host sees, for the log.
    var effect: String {
        switch self {
        case .truncated: "the first half of the descriptor"
        case .overlong: "a length field that is too large"
        case .contradictory: "fields that contradict each other"
        }
    }

    /// Returns the bytes of a descriptor with this error.
    func apply(to bytes: [UInt8], _ subject: Subject) -> [UInt8] {
        var bytes = bytes
        switch (self, subject) {
        case (.truncated, _): return Array(bytes.prefix(bytes.count / 2))
        case (.overlong, .device): bytes.replace(0xff, at: 0)
        case (.overlong, .configuration):
            bytes.replaceWord(
                UInt16(clamping: bytes.count + 1024),
                at: ConfigurationDescriptor.Field.totalLength)
        case (.contradictory, .device):
            // `bMaxPacketSize0` must be 8, 16, 32 or 64, or at SuperSpeed the exponent 9.
            bytes.replace(7, at: DeviceDescriptor.Field.maxPacketSize)
            bytes.replace(0xff, at: DeviceDescriptor.Field.configurationCount)
        case (.contradictory, .configuration):
            bytes.replace(9, at: ConfigurationDescriptor.Field.interfaceCount)
            for descriptor in DescriptorSequence(bytes) {
                switch descriptor.type {
                case .interface:
                    bytes.replace(
                        30, at: descriptor.offset + InterfaceDescriptor.Field.endpointCount)
                case .endpoint:
                    bytes.replaceWord(
                        0, at: descriptor.offset + EndpointDescriptor.Field.maxPacketSize)
                default: break
                }
            }
        }
        return bytes
    }
}

extension [UInt8] {
    /// Replaces the byte at an offset; does nothing beyond the end.
    fileprivate mutating func replace(_ byte: UInt8, at offset: Int) {
        if indices.contains(offset) { self[offset] = byte }
    }

    /// Stores a little-endian word at an offset; ignores bytes beyond the end.
    fileprivate mutating func replaceWord(_ value: UInt16, at offset: Int) {
        replace(UInt8(truncatingIfNeeded: value), at: offset)
        replace(UInt8(truncatingIfNeeded: value >> 8), at: offset + 1)
    }
}
