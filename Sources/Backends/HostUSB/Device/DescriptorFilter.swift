// SPDX-License-Identifier: Apache-2.0

internal import USB

/// Removes features from a device's configuration descriptors that the guest cannot use: remote
/// wakeup, and streams that the host's controller lacks.
struct DescriptorFilter: Equatable, Sendable {
    /// Set if the host has fewer streams than the device.
    var streamLimit: StreamLimit?

    /// The bytes to replace in a configuration's descriptors, of which `bytes` may be the
    /// beginning.
    func changes(to bytes: [UInt8]) -> [(offset: Int, value: UInt8)] {
        wakeupChanges(to: bytes) + (streamLimit?.changes(to: bytes) ?? [])
    }

    /// Removes remote wakeup. The host does not suspend a device that the guest suspends, so the
    /// device would not wake the guest. Without remote wakeup in the descriptors, a guest does not
    /// suspend a device that needs it.
    private func wakeupChanges(to bytes: [UInt8]) -> [(offset: Int, value: UInt8)] {
        var changes: [(offset: Int, value: UInt8)] = []
        let field = ConfigurationDescriptor.Field.attributes
        let remoteWakeup = ConfigurationDescriptor.Attribute.remoteWakeup
        for descriptor in DescriptorSequence(bytes, includesTruncated: true) {
            switch descriptor.type {
            case .configuration, .otherSpeedConfiguration:
                if let attributes = descriptor[field], attributes & remoteWakeup != 0 {
                    changes.append((descriptor.offset + field, attributes & ~remoteWakeup))
                }
            default: break
            }
        }
        return changes
    }
}
