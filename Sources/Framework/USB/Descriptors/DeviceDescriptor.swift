// SPDX-License-Identifier: Apache-2.0

/// The device descriptor (USB 2.0, 9.6.1; USB 3.2, 9.6.1).
public struct DeviceDescriptor: Hashable, Sendable {
    /// Offsets of fields, for ``RawDescriptor``.
    public enum Field {
        /// `bMaxPacketSize0`.
        public static let maxPacketSize = 7
        /// `bNumConfigurations`.
        public static let configurationCount = 17
    }

    /// `bcdUSB`, the version of the specification: 0x0200 for high speed, 0x0300 and above for
    /// SuperSpeed.
    public var usbVersion: UInt16
    /// `bDeviceClass`, `bDeviceSubClass` and `bDeviceProtocol`.
    public var deviceClass: USBClass
    /// `bMaxPacketSize0`, the packet size of endpoint 0 in bytes: 512 at SuperSpeed.
    public var maxPacketSize: Int
    /// `idVendor`.
    public var vendor: UInt16
    /// `idProduct`.
    public var product: UInt16
    /// `bcdDevice`, the release number of the device.
    public var release: UInt16
    /// `iManufacturer`: an index in ``DeviceDescription/strings``, counted from 1; 0 is no string.
    public var manufacturerString: UInt8
    /// `iProduct`; see ``manufacturerString``.
    public var productString: UInt8
    /// `iSerialNumber`; see ``manufacturerString``.
    public var serialNumberString: UInt8

    /// A device descriptor, by default with manufacturer, product and serial number in strings 1 to
    /// 3.
    public init(
        usbVersion: UInt16, deviceClass: USBClass = .perInterface, maxPacketSize: Int,
        vendor: UInt16, product: UInt16, release: UInt16 = 0x0100,
        manufacturerString: UInt8 = 1, productString: UInt8 = 2, serialNumberString: UInt8 = 3
    ) {
        self.usbVersion = usbVersion
        self.deviceClass = deviceClass
        self.maxPacketSize = maxPacketSize
        self.vendor = vendor
        self.product = product
        self.release = release
        self.manufacturerString = manufacturerString
        self.productString = productString
        self.serialNumberString = serialNumberString
    }

    /// The 18 bytes of a device with `configurationCount` configurations.
    func bytes(configurationCount: Int) -> [UInt8] {
        DescriptorBuilder.bytes(of: .device) {
            $0.append(usbVersion)
            $0.append(deviceClass)
            $0.append(encodedMaxPacketSize)
            $0.append(vendor)
            $0.append(product)
            $0.append(release)
            $0.append(manufacturerString)
            $0.append(productString)
            $0.append(serialNumberString)
            $0.append(UInt8(clamping: configurationCount))
        }
    }

    /// The 10 bytes of the device qualifier, which describes the device at its other speed
    /// (USB 2.0, 9.6.2).
    func qualifier(configurationCount: Int) -> [UInt8] {
        DescriptorBuilder.bytes(of: .deviceQualifier) {
            $0.append(usbVersion)
            $0.append(deviceClass)
            $0.append(encodedMaxPacketSize)
            $0.append(UInt8(clamping: configurationCount))
            $0.append(UInt8(0))
        }
    }

    /// `bMaxPacketSize0`, which from USB 3.0 on is the exponent of a power of two.
    private var encodedMaxPacketSize: UInt8 {
        usbVersion >= 0x0300
            ? UInt8(maxPacketSize.trailingZeroBitCount) : UInt8(clamping: maxPacketSize)
    }
}
