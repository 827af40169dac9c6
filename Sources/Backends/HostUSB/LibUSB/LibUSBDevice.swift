// SPDX-License-Identifier: Apache-2.0

internal import CLibUSB
internal import USB

/// A host device, with the properties that are known without opening it.
@safe
final class LibUSBDevice {
    /// Distinguishes connected devices; valid while a reference to the device is kept.
    struct ID: Equatable {
        private let address: UInt

        init(_ raw: OpaquePointer) { address = UInt(bitPattern: raw) }
    }

    let id: ID
    private let raw: OpaquePointer
    /// Retained, because the context must outlive its devices.
    private let context: LibUSBContext
    let bus: UInt8
    let address: UInt8
    let vendor: UInt16
    let product: UInt16
    let deviceClass: UInt8
    /// The device's directory in sysfs: `1-2.3` is port 3 of the hub at port 2 of bus 1.
    let portPath: String

    /// Retains libusb's device `raw`.
    init(_ raw: OpaquePointer, of context: LibUSBContext) {
        self.context = context
        unsafe self.raw = libusb_ref_device(raw)
        unsafe id = ID(raw)
        bus = unsafe libusb_get_bus_number(raw)
        address = unsafe libusb_get_device_address(raw)
        var descriptor = libusb_device_descriptor()
        _ = unsafe libusb_get_device_descriptor(raw, &descriptor)
        vendor = descriptor.idVendor
        product = descriptor.idProduct
        deviceClass = descriptor.bDeviceClass
        // libusb asks for space for 7 ports, the greatest depth of the bus.
        var ports = [UInt8](repeating: 0, count: 7)
        let count = unsafe Int(libusb_get_port_numbers(raw, &ports, CInt(ports.count)))
        portPath =
            count > 0
            ? "\(bus)-" + ports[..<count].map { String($0) }.joined(separator: ".")
            : "usb\(bus)"
    }

    deinit { unsafe libusb_unref_device(raw) }

    /// The speed of the link, if libusb or the kernel knows it.
    var speed: USBSpeed? {
        let known = unsafe libusb_get_device_speed(raw)
        return Self.speed(known) ?? SystemFiles.speed(of: portPath)
    }

    /// The speed of a `libusb_speed` value.
    static func speed(_ number: CInt) -> USBSpeed? {
        switch libusb_speed(UInt32(bitPattern: number)) {
        case LIBUSB_SPEED_LOW: .low
        case LIBUSB_SPEED_FULL: .full
        case LIBUSB_SPEED_HIGH: .high
        case LIBUSB_SPEED_SUPER: .superSpeed
        case LIBUSB_SPEED_SUPER_PLUS, superSpeedPlusTwoLanes: .superSpeedPlus
        default: nil
        }
    }

    /// LIBUSB_SPEED_SUPER_PLUS_X2 of later libusb versions: two lanes of 10 Gb/s each.
    private static let superSpeedPlusTwoLanes = libusb_speed(6)

    var isHub: Bool { UInt32(deviceClass) == LIBUSB_CLASS_HUB.rawValue }

    /// Opens the device. Usable on any thread while a reference to the device is kept.
    var opener: Opener { unsafe Opener(raw: raw) }

    @safe
    struct Opener: @unchecked Sendable {
        fileprivate let raw: OpaquePointer

        /// Opens the device node. Blocks while the kernel wakes up the device or waits for a
        /// driver.
        func open() throws(LibUSBError) -> LibUSBHandle.Pointer {
            var handle: OpaquePointer?
            try libusb { unsafe libusb_open(raw, &handle) }
            guard let handle = unsafe handle else { throw .noDevice }
            return unsafe LibUSBHandle.Pointer(raw: handle)
        }
    }
}
