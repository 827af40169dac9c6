// SPDX-License-Identifier: Apache-2.0

extension ConfigurationDescriptor {
    /// The configurations in a device's descriptors, each with its interfaces and endpoints.
    ///
    /// The bytes come from the device, so lengths, counts and numbers in them may be wrong. Only
    /// the descriptors themselves are used: `wTotalLength`, `bNumInterfaces` and `bNumEndpoints`
    /// are ignored, and descriptors that are too short for their type are skipped. The result for a
    /// prefix of the bytes is a prefix of the result. Configurations beyond
    /// ``USBLimits/configurations`` and interface numbers beyond ``USBLimits/interfaces`` are left
    /// out, with all that follows up to the next interface or configuration.
    ///
    /// Descriptors of other types are kept with the endpoint or interface before them.
    ///
    /// - Parameters:
    ///   - bytes: one configuration, or all descriptors of a device one after the other.
    ///   - superSpeed: the unit of `bMaxPower` is 8 mA instead of 2 mA. Nothing else depends on it.
    /// - Returns: the configurations in the order of the bytes.
    public static func all(
        in bytes: [UInt8], superSpeed: Bool = false
    ) -> [ConfigurationDescriptor] {
        var parser = ConfigurationParser(superSpeed: superSpeed)
        for descriptor in DescriptorSequence(bytes) {
            guard parser.add(descriptor) else { break }
        }
        return parser.configurations
    }
}

/// Assembles configurations from the descriptors that follow each other.
private struct ConfigurationParser {
    let superSpeed: Bool
    private(set) var configurations: [ConfigurationDescriptor] = []
    /// Interface numbers of the last configuration.
    private var numbers: Set<UInt8> = []
    /// Whether further descriptors belong to the last interface of the last configuration.
    private var isInInterface = false
    /// Whether the last endpoint has its companion, which is the first one behind it.
    private var hasCompanion = false

    init(superSpeed: Bool) { self.superSpeed = superSpeed }

    /// Adds the next descriptor.
    ///
    /// - Returns: `false` if there are too many configurations.
    mutating func add(_ descriptor: RawDescriptor) -> Bool {
        switch descriptor.type {
        case .configuration, .otherSpeedConfiguration: return addConfiguration(descriptor)
        case .interface: addInterface(descriptor)
        case .endpoint: addEndpoint(descriptor)
        case .superSpeedEndpointCompanion: addCompanion(descriptor)
        default: addOther(descriptor)
        }
        return true
    }

    private mutating func addConfiguration(_ descriptor: RawDescriptor) -> Bool {
        guard let configuration = ConfigurationDescriptor(descriptor, superSpeed: superSpeed)
        else { return true }
        guard configurations.count < USBLimits.configurations else { return false }
        configurations.append(configuration)
        numbers = []
        isInInterface = false
        return true
    }

    private mutating func addInterface(_ descriptor: RawDescriptor) {
        guard let interface = InterfaceDescriptor(descriptor),
            let last = configurations.indices.last
        else { return }
        isInInterface =
            numbers.contains(interface.number) || numbers.count < USBLimits.interfaces
        guard isInInterface else { return }
        numbers.insert(interface.number)
        configurations[last].interfaces.append(interface)
    }

    private mutating func addEndpoint(_ descriptor: RawDescriptor) {
        guard let endpoint = EndpointDescriptor(descriptor) else { return }
        hasCompanion = false
        changeInterface { $0.endpoints.append(endpoint) }
    }

    private mutating func addCompanion(_ descriptor: RawDescriptor) {
        guard !hasCompanion, let companion = SuperSpeedCompanion(descriptor) else { return }
        hasCompanion = true
        changeInterface { interface in
            guard let last = interface.endpoints.indices.last else { return }
            interface.endpoints[last].companion = companion
        }
    }

    private mutating func addOther(_ descriptor: RawDescriptor) {
        changeInterface { interface in
            if let last = interface.endpoints.indices.last {
                interface.endpoints[last].classDescriptors += descriptor.bytes
            } else {
                interface.classDescriptors += descriptor.bytes
            }
        }
    }

    /// Changes the interface that the descriptor belongs to, if there is one.
    private mutating func changeInterface(_ body: (inout InterfaceDescriptor) -> Void) {
        guard isInInterface, let configuration = configurations.indices.last,
            let interface = configurations[configuration].interfaces.indices.last
        else { return }
        body(&configurations[configuration].interfaces[interface])
    }
}
