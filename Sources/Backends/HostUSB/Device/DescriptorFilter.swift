// SPDX-License-Identifier: Apache-2.0

internal import USB

/// What a guest must not be offered of a device.
///
/// A guest counts on what descriptors offer, so they must not offer what it cannot have: they are
/// changed on their way to the guest.
struct GuestOffer: Equatable, Sendable {
    /// `bmAttributes` of a configuration (USB 2.0, 9.6.3): its place, and its bit for remote wakeup.
    private static let attributes = 7
    private static let remoteWakeup: UInt8 = 1 << 5

    /// If the host has fewer streams than the device.
    var streams: StreamLimit?

    /// The bytes of a configuration's descriptors, or of their beginning, that a guest must see
    /// differently.
    func changes(to bytes: [UInt8]) -> [(offset: Int, value: UInt8)] {
        wakeupChanges(to: bytes) + (streams?.changes(to: bytes) ?? [])
    }

    /// A device that the guest suspends runs on here, and what it would wake the guest for nobody
    /// would hear of. A guest that is not offered it leaves such a device running.
    private func wakeupChanges(to bytes: [UInt8]) -> [(offset: Int, value: UInt8)] {
        var changes: [(offset: Int, value: UInt8)] = []
        for (offset, descriptor) in DescriptorWalk(bytes, takesCutOff: true) {
            switch DescriptorType(rawValue: descriptor[1]) {
            case .configuration where descriptor.count > Self.attributes,
                .otherSpeedConfiguration where descriptor.count > Self.attributes:
                let value = descriptor[Self.attributes]
                if value & Self.remoteWakeup != 0 {
                    changes.append((offset + Self.attributes, value & ~Self.remoteWakeup))
                }
            default: break
            }
        }
        return changes
    }
}
