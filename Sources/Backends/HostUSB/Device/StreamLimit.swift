// SPDX-License-Identifier: Apache-2.0

internal import USB

/// A bulk endpoint that offers streams (USB 3.2, 9.6.7), by which is found out what the host's
/// controller makes of them.
struct StreamEndpoint: Equatable {
    let interface: UInt8
    let setting: UInt8
    let address: UInt8
    /// MaxStreams: the device has 2^n.
    let exponent: UInt8

    /// How many streams the device offers, as far as an endpoint can have them at our controller.
    var offered: Int { min(1 << Int(exponent), StreamLimit.mostUsed) }

    /// The one with the most streams in a configuration, from the device's descriptors.
    static func greatest(in bytes: [UInt8], configuration: UInt8) -> StreamEndpoint? {
        var greatest: StreamEndpoint?
        var isHere = false
        var interface: (number: UInt8, setting: UInt8)?
        var endpoint: UInt8?
        for (_, descriptor) in DescriptorWalk(bytes) {
            switch DescriptorType(rawValue: descriptor[1]) {
            case .configuration where descriptor.count >= 9:
                isHere = descriptor[5] == configuration
                interface = nil
                endpoint = nil
            case .interface where descriptor.count >= 9:
                interface = (descriptor[2], descriptor[3])
                endpoint = nil
            case .endpoint where descriptor.count >= 7:
                endpoint = descriptor[3] & 3 == 2 ? descriptor[2] : nil
            case .superSpeedEndpointCompanion where descriptor.count >= 6:
                let exponent = descriptor[3] & 0x1f
                guard isHere, exponent > greatest?.exponent ?? 0, let address = endpoint,
                    let interface
                else { continue }
                // More than 2^16 streams no descriptor may offer.
                greatest = StreamEndpoint(
                    interface: interface.number, setting: interface.setting, address: address,
                    exponent: min(exponent, 16))
            default: break
            }
        }
        return greatest
    }
}

/// How many streams the host has for a device that offers more; see ``GuestOffer``.
struct StreamLimit: Equatable, Sendable {
    /// What our controller can use of an endpoint's streams (MaxPSASize is 7).
    static let mostUsed = 255
    private static let uasProtocol: UInt8 = 0x62

    /// 2^n streams; 0: none.
    let exponent: UInt8

    /// - Returns: `nil` if the host has all that can be used.
    init?(granted: Int, of offered: Int) {
        guard granted < offered else { return nil }
        exponent = granted > 1 ? UInt8(clamping: Int.bitWidth - 1 - granted.leadingZeroBitCount) : 0
    }

    /// What an operator should know of it.
    var words: String {
        exponent == 0
            ? "the host's controller has no streams for it, so the guest is not offered any; a disk "
                + "with UAS is one without to the guest, if it can be"
            : "the host's controller has \(1 << Int(exponent)) streams for it, so the guest is not "
                + "offered more"
    }

    /// The bytes of a configuration's descriptors, or of their beginning, that a guest must see
    /// differently.
    func changes(to bytes: [UInt8]) -> [(offset: Int, value: UInt8)] {
        var changes: [(offset: Int, value: UInt8)] = []
        var isBulk = false
        for (offset, descriptor) in DescriptorWalk(bytes, takesCutOff: true) {
            switch DescriptorType(rawValue: descriptor[1]) {
            case .interface where exponent == 0 && descriptor.count >= 8:
                // UAS needs streams at this speed (UAS, 4): a driver that finds the setting, and then
                // no streams, may not try the other one.
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
