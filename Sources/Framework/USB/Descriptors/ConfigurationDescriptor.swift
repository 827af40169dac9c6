// SPDX-License-Identifier: Apache-2.0

/// A configuration descriptor with the interfaces and endpoints that follow it (USB 2.0, 9.6.3).
///
/// ``DeviceDescription/descriptor(_:index:)`` builds its bytes; ``all(in:superSpeed:)`` parses
/// them.
public struct ConfigurationDescriptor: Hashable, Sendable {
    /// Offsets of fields, for ``RawDescriptor``.
    public enum Field {
        /// `wTotalLength`, two bytes.
        public static let totalLength = 2
        /// `bNumInterfaces`.
        public static let interfaceCount = 4
        /// `bConfigurationValue`.
        public static let value = 5
        /// `iConfiguration`.
        public static let string = 6
        /// `bmAttributes`; see ``Attribute``.
        public static let attributes = 7
        /// `bMaxPower`.
        public static let maxPower = 8
    }

    /// Bits of `bmAttributes`.
    public enum Attribute {
        /// Bit 5: the device can wake the host.
        public static let remoteWakeup: UInt8 = 1 << 5
        /// Bit 6: the device has power of its own.
        public static let selfPowered: UInt8 = 1 << 6
        /// Bit 7, which is always set.
        static let reserved: UInt8 = 1 << 7
    }

    /// The length of the descriptor in bytes, without those that follow it.
    static let size = 9

    /// `bConfigurationValue`, by which a host selects the configuration.
    ///
    /// It is not 0, except in the descriptors of a device that violates the specification.
    public var value: UInt8
    /// `iConfiguration`: an index in ``DeviceDescription/strings``, counted from 1; 0 is no string.
    public var string: UInt8
    /// Whether the device has power of its own (`bmAttributes` bit 6).
    public var isSelfPowered: Bool
    /// Whether the device can wake the host (`bmAttributes` bit 5).
    public var supportsRemoteWakeup: Bool
    /// `bMaxPower`: the current that the device draws from the bus at most, in milliamperes.
    public var milliamperes: Int
    /// All settings of all interfaces, in the order of the descriptors: the settings of one
    /// interface follow each other.
    public var interfaces: [InterfaceDescriptor]

    /// A configuration.
    ///
    /// - Precondition: `value` is not 0, which stands for a device that is not configured.
    public init(
        value: UInt8 = 1, string: UInt8 = 0, isSelfPowered: Bool = false,
        supportsRemoteWakeup: Bool = false, milliamperes: Int = 100,
        interfaces: [InterfaceDescriptor]
    ) {
        precondition(value != 0, "configuration 0 means 'not configured'")
        self.value = value
        self.string = string
        self.isSelfPowered = isSelfPowered
        self.supportsRemoteWakeup = supportsRemoteWakeup
        self.milliamperes = milliamperes
        self.interfaces = interfaces
    }

    /// The number of each interface once, in the order of the descriptors.
    public var interfaceNumbers: [UInt8] {
        var seen: Set<UInt8> = []
        return interfaces.map(\.number).filter { seen.insert($0).inserted }
    }
}

extension ConfigurationDescriptor {
    /// The fields of a descriptor, without interfaces; `nil` if it is too short.
    ///
    /// The value may be 0.
    init?(_ descriptor: RawDescriptor, superSpeed: Bool) {
        guard descriptor.bytes.count >= Self.size else { return nil }
        value = descriptor.bytes[Field.value]
        string = descriptor.bytes[Field.string]
        isSelfPowered = descriptor.bytes[Field.attributes] & Attribute.selfPowered != 0
        supportsRemoteWakeup = descriptor.bytes[Field.attributes] & Attribute.remoteWakeup != 0
        milliamperes =
            Int(descriptor.bytes[Field.maxPower]) * Self.currentUnit(superSpeed: superSpeed)
        interfaces = []
    }

    /// The descriptor and all that follow it.
    func bytes(as type: DescriptorType = .configuration, superSpeed: Bool) -> [UInt8] {
        var attributes = Attribute.reserved
        if isSelfPowered { attributes |= Attribute.selfPowered }
        if supportsRemoteWakeup { attributes |= Attribute.remoteWakeup }
        let unit = Self.currentUnit(superSpeed: superSpeed)
        let inner = interfaces.flatMap { $0.bytes(superSpeed: superSpeed) }
        let header = DescriptorBuilder.bytes(of: type) {
            $0.append(UInt16(clamping: Self.size + inner.count))
            $0.append(UInt8(clamping: interfaceNumbers.count))
            $0.append(value)
            $0.append(string)
            $0.append(attributes)
            $0.append(UInt8(clamping: (milliamperes + unit - 1) / unit))
        }
        return header + inner
    }

    /// The unit of `bMaxPower` in milliamperes (USB 2.0, table 9-10; USB 3.2, table 9-22).
    private static func currentUnit(superSpeed: Bool) -> Int { superSpeed ? 8 : 2 }
}
