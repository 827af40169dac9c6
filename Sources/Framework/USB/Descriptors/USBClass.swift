// SPDX-License-Identifier: Apache-2.0

/// The class code of a device or an interface, by which a host chooses the driver (USB 2.0, 9.2.3).
///
/// The codes are listed at <https://www.usb.org/defined-class-codes>.
public struct USBClass: Hashable, Sendable {
    /// `bDeviceClass` or `bInterfaceClass`.
    public var code: UInt8
    /// `bDeviceSubClass` or `bInterfaceSubClass`.
    public var subclass: UInt8
    /// `bDeviceProtocol` or `bInterfaceProtocol`.
    public var `protocol`: UInt8

    /// A class code with its subclass and protocol.
    public init(_ code: UInt8, subclass: UInt8 = 0, protocol: UInt8 = 0) {
        self.code = code
        self.subclass = subclass
        self.protocol = `protocol`
    }

    /// A device whose interfaces each have a class of their own.
    public static let perInterface = USBClass(0)
    /// A device or an interface that only a driver of its vendor knows.
    public static let vendorSpecific = USBClass(0xff, subclass: 0xff, protocol: 0xff)
}
