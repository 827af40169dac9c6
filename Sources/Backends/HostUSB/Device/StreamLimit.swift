// SPDX-License-Identifier: Apache-2.0

internal import USB

/// A bulk endpoint with streams (USB 3.2, 9.6.7), on which the host's controller is tried.
struct StreamEndpoint: Equatable {
    let interface: UInt8
    let setting: UInt8
    let address: UInt8
    /// MaxStreams: the device has 2^n streams.
    let exponent: UInt8

    /// The number of streams that the guest can use: the device's, up to the guest's controller's.
    var offered: Int { min(1 << Int(exponent), StreamLimit.mostUsed) }

    /// The endpoint with the most streams in a configuration, from the device's descriptors.
    static func greatest(in bytes: [UInt8], configuration: UInt8) -> StreamEndpoint? {
        var greatest: StreamEndpoint?
        var isInConfiguration = false
        var interface: (number: UInt8, setting: UInt8)?
        var endpoint: UInt8?
        for (_, descriptor) in DescriptorWalk(bytes) {
            switch DescriptorType(rawValue: descriptor[1]) {
            case .configuration where descriptor.count >= 9:
                isInConfiguration = descriptor[5] == configuration
                interface = nil
                endpoint = nil
            case .interface where descriptor.count >= 9:
                interface = (descriptor[2], descriptor[3])
                endpoint = nil
            case .endpoint where descriptor.count >= 7:
                endpoint = descriptor[3] & 3 == 2 ? descriptor[2] : nil
            case .superSpeedEndpointCompanion where descriptor.count >= 6:
                let exponent = descriptor[3] & 0x1f
                guard isInConfiguration, exponent > greatest?.exponent ?? 0, let address = endpoint,
                    let interface
                else { continue }
                // 16 is the largest MaxStreams.
                greatest = StreamEndpoint(
                    interface: interface.number, setting: interface.setting, address: address,
                    exponent: min(exponent, 16))
            default: break
            }
        }
        return greatest
    }
}

/// The number of streams that the host has for a device with more; see ``DescriptorFilter``.
struct StreamLimit: Equatable, Sendable {
    /// The streams of an endpoint that the guest's controller can use (MaxPSASize is 7).
    static let mostUsed = 255
    private static let uasProtocol: UInt8 = 0x62

    /// The guest is offered 2^n streams, or none if this is 0.
    let exponent: UInt8

    /// - Returns: `nil` if the host has all streams that the guest can use.
    init?(granted: Int, of offered: Int) {
        guard granted < offered else { return nil }
        exponent = granted > 1 ? UInt8(clamping: Int.bitWidth - 1 - granted.leadingZeroBitCount) : 0
    }

    /// The warning in the operator's log.
    var warning: String {
        exponent == 0
            ? "the host's controller has no streams for it, so the guest is not offered any; a UAS "
                + "disk is a plain mass storage device to the guest, if it can be"
            : "the host's controller has \(1 << Int(exponent)) streams for it, so the guest is not "
                + "offered more"
    }

    /// The bytes to replace in a configuration's descriptors, or in the beginning of them.
    func changes(to bytes: [UInt8]) -> [(offset: Int, value: UInt8)] {
        var changes: [(offset: Int, value: UInt8)] = []
        var isBulk = false
        for (offset, descriptor) in DescriptorWalk(bytes, takesCutOff: true) {
            switch DescriptorType(rawValue: descriptor[1]) {
            case .interface where exponent == 0 && descriptor.count >= 8:
                // UAS needs streams at this speed (UAS, 4). A driver that finds the alternate setting
                // and then no streams may not try the other setting.
                if descriptor[5...7].elementsEqual([8, 6, Self.uasProtocol]) {
                    changes.append((offset + 5, 0xff))
                }
            case .endpoint where descriptor.count >= 4: isBulk = descriptor[3] & 3 == 2
            case .superSpeedEndpointCompanion where descriptor.count >= 4:
                if isBulk && descriptor[3] & 0x1f > exponent {
                    changes.append((offset + 3, descriptor[3] & 0xe0 | exponent))
                }
            default: break
            }
        }
        return changes
    }
}
