// SPDX-License-Identifier: Apache-2.0

internal import USB

/// Adapts a device's configuration descriptors for the guest, which must not be offered what it
/// cannot have: remote wakeup, and streams that the host's controller lacks.
struct DescriptorFilter: Equatable, Sendable {
    /// `bmAttributes` of a configuration (USB 2.0, 9.6.3): its offset, and its bit for remote wakeup.
    private static let attributes = 7
    private static let remoteWakeup: UInt8 = 1 << 5

    /// Set if the host has fewer streams than the device.
    var streamLimit: StreamLimit?

    /// The bytes to replace in a configuration's descriptors, or in the beginning of them.
    func changes(to bytes: [UInt8]) -> [(offset: Int, value: UInt8)] {
        wakeupChanges(to: bytes) + (streamLimit?.changes(to: bytes) ?? [])
    }

    /// Removes remote wakeup. The host does not suspend a device that the guest suspends, so the
    /// device would not wake the guest. A guest that is not offered remote wakeup does not suspend a
    /// device that needs it.
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
