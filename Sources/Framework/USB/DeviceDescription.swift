// SPDX-License-Identifier: Apache-2.0

/// All that an emulated device says of itself: the tree of its descriptors at its speed.
///
/// ``DefaultControlPipe`` answers a host's questions from it.
public struct DeviceDescription: Sendable {
    /// What a high-speed device would be at full speed, for hosts that ask.
    public struct OtherSpeed: Sendable {
        public var device: DeviceDescriptor
        public var configurations: [ConfigurationDescriptor]

        public init(device: DeviceDescriptor, configurations: [ConfigurationDescriptor]) {
            self.device = device
            self.configurations = configurations
        }
    }

    public var speed: USBSpeed
    public var device: DeviceDescriptor
    public var configurations: [ConfigurationDescriptor]
    /// String 1 and so on.
    public var strings: [String]
    /// The binary object store; empty for a device that has none, as before USB 2.1.
    public var capabilities: [DeviceCapability]
    /// `nil`: the device knows one speed.
    public var otherSpeed: OtherSpeed?

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

    /// The descriptor of a type and index as it goes over the wire; `nil` if there is none.
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
        default:
            // Interfaces and endpoints are only to be had with their configuration.
            return nil
        }
    }
}
