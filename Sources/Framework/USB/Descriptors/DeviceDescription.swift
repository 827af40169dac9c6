// SPDX-License-Identifier: Apache-2.0

/// All descriptors of an emulated device at its speed.
///
/// ``DefaultControlPipe`` answers GET_DESCRIPTOR from it.
public struct DeviceDescription: Sendable {
    /// The descriptors of a high-speed device as it would be at full speed, for hosts that ask
    /// (USB 2.0, 9.6.2 and 9.6.4).
    public struct OtherSpeed: Sendable {
        /// The device descriptor, from which the device qualifier is made.
        public var device: DeviceDescriptor
        /// The configurations, in the order of their descriptor index.
        public var configurations: [ConfigurationDescriptor]

        /// The descriptors of the other speed.
        public init(device: DeviceDescriptor, configurations: [ConfigurationDescriptor]) {
            self.device = device
            self.configurations = configurations
        }
    }

    /// The speed at which the device is attached, which decides whether endpoints have companions.
    public var speed: USBSpeed
    /// The device descriptor.
    public var device: DeviceDescriptor
    /// The configurations, in the order of their descriptor index.
    ///
    /// A host without a reason for another one selects the first.
    public var configurations: [ConfigurationDescriptor]
    /// The strings, from index 1 on, in English (United States).
    ///
    /// A descriptor holds 126 UTF-16 units; a longer string is cut.
    public var strings: [String]
    /// The capabilities of the BOS; empty for a device without one, as before USB 2.1.
    public var capabilities: [DeviceCapability]
    /// The descriptors of the other speed; `nil` if the device has one speed.
    public var otherSpeed: OtherSpeed?

    /// A description of a device.
    public init(
        speed: USBSpeed, device: DeviceDescriptor, configurations: [ConfigurationDescriptor],
        strings: [String] = [], capabilities: [DeviceCapability] = [],
        otherSpeed: OtherSpeed? = nil
    ) {
        self.speed = speed
        self.device = device
        self.configurations = configurations
        self.strings = strings
        self.capabilities = capabilities
        self.otherSpeed = otherSpeed
    }

    /// The bytes that GET_DESCRIPTOR returns for a type and index; `nil` if the device has no such
    /// descriptor (USB 2.0, 9.4.3).
    ///
    /// Interface and endpoint descriptors come with their configuration only.
    public func descriptor(_ type: DescriptorType, index: UInt8) -> [UInt8]? {
        let index = Int(index)
        switch type {
        case .device:
            return index == 0
                ? device.bytes(configurationCount: configurations.count) : nil
        case .configuration:
            guard configurations.indices.contains(index) else { return nil }
            return configurations[index].bytes(superSpeed: speed.isSuperSpeed)
        case .string:
            if index == 0 { return strings.isEmpty ? nil : StringDescriptor.languages }
            guard strings.indices.contains(index - 1) else { return nil }
            return StringDescriptor.bytes(strings[index - 1])
        case .deviceQualifier:
            guard index == 0, let otherSpeed else { return nil }
            return otherSpeed.device.qualifier(
                configurationCount: otherSpeed.configurations.count)
        case .otherSpeedConfiguration:
            guard let otherSpeed, otherSpeed.configurations.indices.contains(index) else {
                return nil
            }
            return otherSpeed.configurations[index].bytes(
                as: .otherSpeedConfiguration, superSpeed: false)
        case .binaryObjectStore:
            guard index == 0, !capabilities.isEmpty else { return nil }
            return DeviceCapability.objectStore(capabilities)
        default: return nil
        }
    }
}
