// SPDX-License-Identifier: Apache-2.0

/// `bDescriptorType` of a descriptor (USB 2.0, table 9-5; USB 3.2, table 9-6).
///
/// Class and vendor specifications add values, so any byte is valid.
public struct DescriptorType: RawRepresentable, Hashable, Sendable {
    /// The byte in the descriptor.
    public let rawValue: UInt8

    /// The type with this code, which need not be one of the constants.
    public init(rawValue: UInt8) { self.rawValue = rawValue }

    /// DEVICE.
    public static let device = DescriptorType(rawValue: 1)
    /// CONFIGURATION.
    public static let configuration = DescriptorType(rawValue: 2)
    /// STRING.
    public static let string = DescriptorType(rawValue: 3)
    /// INTERFACE.
    public static let interface = DescriptorType(rawValue: 4)
    /// ENDPOINT.
    public static let endpoint = DescriptorType(rawValue: 5)
    /// DEVICE_QUALIFIER: the device descriptor of the other speed.
    public static let deviceQualifier = DescriptorType(rawValue: 6)
    /// OTHER_SPEED_CONFIGURATION: a configuration of the other speed.
    public static let otherSpeedConfiguration = DescriptorType(rawValue: 7)
    /// BOS: the list of device capabilities.
    public static let binaryObjectStore = DescriptorType(rawValue: 15)
    /// DEVICE CAPABILITY: one entry of the BOS.
    public static let deviceCapability = DescriptorType(rawValue: 16)
    /// SUPERSPEED_USB_ENDPOINT_COMPANION.
    public static let superSpeedEndpointCompanion = DescriptorType(rawValue: 48)
}
