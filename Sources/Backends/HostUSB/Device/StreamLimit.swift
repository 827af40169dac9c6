// SPDX-License-Identifier: Apache-2.0

internal import USB

/// A bulk endpoint with streams (USB 3.2, 9.6.7), on which the host's controller is tested.
struct StreamEndpoint: Equatable {
    let interface: UInt8
    let setting: UInt8
    let address: EndpointAddress
    /// MaxStreams: the device has 2^n streams.
    let exponent: UInt8

    /// The number of streams that the guest can use: the device's, limited by the guest's
    /// controller.
    var offered: Int { min(1 << Int(exponent), StreamLimit.mostUsed) }

    /// The endpoint with the most streams in a configuration, from the device's descriptors.
    static func greatest(in bytes: [UInt8], configuration value: UInt8) -> StreamEndpoint? {
        let configuration = ConfigurationDescriptor.all(in: bytes).first { $0.value == value }
        var greatest: StreamEndpoint?
        for interface in configuration?.interfaces ?? [] {
            for endpoint in interface.endpoints where endpoint.transferType == .bulk {
                // 16 is the largest MaxStreams.
                let exponent = min(endpoint.companion.maxStreams, 16)
                guard exponent > greatest?.exponent ?? 0 else { continue }
                greatest = StreamEndpoint(
                    interface: interface.number, setting: interface.alternateSetting,
                    address: endpoint.address, exponent: exponent)
            }
        }
        return greatest
    }
}

/// The number of streams that the host's controller has for a device with more; see
/// ``DescriptorFilter``.
struct StreamLimit: Equatable, Sendable {
    /// The maximum streams of an endpoint in the guest's controller (MaxPSASize is 7).
    static let mostUsed = 255
    private static let uas = USBClass(8, subclass: 6, protocol: 0x62)

    /// MaxStreams for the guest: 2^n streams, or none if this is 0.
    let exponent: UInt8

    /// - Parameters:
    ///   - granted: the streams that the host's controller can allocate; negative after an error.
    ///   - offered: the streams that the guest can use.
    /// - Returns: `nil` if the host has all streams that the guest can use.
    init?(granted: Int, of offered: Int) {
        guard granted < offered else { return nil }
        exponent = granted > 1 ? UInt8(clamping: Int.bitWidth - 1 - granted.leadingZeroBitCount) : 0
    }

    /// The warning in the operator's log.
    var warning: String {
        exponent == 0
            ? "the host's controller has no streams for it, so the guest is not offered any; the "
                + "guest uses a UAS disk by the Bulk-Only Transport, if the disk supports it"
            : "the host's controller has \(1 << Int(exponent)) streams for it, so the guest is not "
                + "offered more"
    }

    /// The bytes to replace in a configuration's descriptors, of which `bytes` may be the
    /// beginning.
    func changes(to bytes: [UInt8]) -> [(offset: Int, value: UInt8)] {
        var changes: [(offset: Int, value: UInt8)] = []
        var isBulk = false
        for descriptor in DescriptorSequence(bytes, includesTruncated: true) {
            switch descriptor.type {
            case .interface where exponent == 0:
                // UAS needs streams at this speed (UAS, 4). A driver that finds the UAS alternate
                // setting without streams may not try the other setting.
                if Self.isUAS(descriptor) {
                    changes.append(
                        (
                            descriptor.offset + InterfaceDescriptor.Field.classCode,
                            USBClass.vendorSpecific.code
                        ))
                }
            case .endpoint:
                guard let attributes = descriptor[EndpointDescriptor.Field.attributes] else {
                    break
                }
                isBulk = EndpointDescriptor.TransferType(attributes: attributes) == .bulk
            case .superSpeedEndpointCompanion:
                let field = SuperSpeedCompanion.Field.attributes
                let mask = SuperSpeedCompanion.maxStreamsMask
                guard isBulk, let attributes = descriptor[field], attributes & mask > exponent
                else {
                    break
                }
                changes.append((descriptor.offset + field, attributes & ~mask | exponent))
            default: break
            }
        }
        return changes
    }

    private static func isUAS(_ interface: RawDescriptor) -> Bool {
        interface[InterfaceDescriptor.Field.classCode] == uas.code
            && interface[InterfaceDescriptor.Field.subclass] == uas.subclass
            && interface[InterfaceDescriptor.Field.protocol] == uas.protocol
    }
}
