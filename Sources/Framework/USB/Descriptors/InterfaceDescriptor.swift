// SPDX-License-Identifier: Apache-2.0

/// An interface descriptor, which is one alternate setting of an interface, with the endpoints that
/// follow it (USB 2.0, 9.6.5).
public struct InterfaceDescriptor: Hashable, Sendable {
    /// Offsets of fields, for ``RawDescriptor``.
    public enum Field {
        /// `bInterfaceNumber`.
        public static let number = 2
        /// `bAlternateSetting`.
        public static let alternateSetting = 3
        /// `bNumEndpoints`.
        public static let endpointCount = 4
        /// `bInterfaceClass`.
        public static let classCode = 5
        /// `bInterfaceSubClass`.
        public static let subclass = 6
        /// `bInterfaceProtocol`.
        public static let `protocol` = 7
        /// `iInterface`.
        public static let string = 8
    }

    /// The length of the descriptor in bytes, without those that follow it.
    static let size = 9

    /// `bInterfaceNumber`, counted from 0.
    public var number: UInt8
    /// `bAlternateSetting`; each interface has a setting 0, which SET_CONFIGURATION selects.
    public var alternateSetting: UInt8
    /// `bInterfaceClass`, `bInterfaceSubClass` and `bInterfaceProtocol`.
    public var interfaceClass: USBClass
    /// `iInterface`: an index in ``DeviceDescription/strings``, counted from 1; 0 is no string.
    public var string: UInt8
    /// Whole descriptors of the interface's class, which go between this one and the endpoints.
    public var classDescriptors: [UInt8]
    /// The endpoints of this setting, without endpoint 0.
    public var endpoints: [EndpointDescriptor]

    /// An alternate setting of an interface.
    public init(
        number: UInt8 = 0, alternateSetting: UInt8 = 0, interfaceClass: USBClass,
        string: UInt8 = 0, classDescriptors: [UInt8] = [], endpoints: [EndpointDescriptor]
    ) {
        self.number = number
        self.alternateSetting = alternateSetting
        self.interfaceClass = interfaceClass
        self.string = string
        self.classDescriptors = classDescriptors
        self.endpoints = endpoints
    }
}

extension InterfaceDescriptor {
    /// The fields of a descriptor, without endpoints; `nil` if it is too short.
    init?(_ descriptor: RawDescriptor) {
        guard descriptor.bytes.count >= Self.size else { return nil }
        self.init(
            number: descriptor.bytes[Field.number],
            alternateSetting: descriptor.bytes[Field.alternateSetting],
            interfaceClass: USBClass(
                descriptor.bytes[Field.classCode], subclass: descriptor.bytes[Field.subclass],
                protocol: descriptor.bytes[Field.protocol]),
            string: descriptor.bytes[Field.string], endpoints: [])
    }

    /// The descriptor and all that follow it.
    func bytes(superSpeed: Bool) -> [UInt8] {
        let header = DescriptorBuilder.bytes(of: .interface) {
            $0.append(number)
            $0.append(alternateSetting)
            $0.append(UInt8(clamping: endpoints.count))
            $0.append(interfaceClass)
            $0.append(string)
        }
        return header + classDescriptors + endpoints.flatMap { $0.bytes(superSpeed: superSpeed) }
    }
}
