// SPDX-License-Identifier: Apache-2.0

internal import CLibUSB
internal import USB

/// A device of the host, seen from outside: what can be known without opening it.
@safe
final class LibUSBDevice {
    /// Tells devices that are plugged in apart; good for as long as a reference is kept.
    struct Identity: Equatable {
        private let number: UInt

        init(_ raw: OpaquePointer) { number = UInt(bitPattern: raw) }
    }

    let identity: Identity
    private let raw: OpaquePointer
    /// libusb's context must outlive its devices.
    private let context: LibUSBContext
    let bus: UInt8
    let address: UInt8
    let vendor: UInt16
    let product: UInt16
    let deviceClass: UInt8
    /// The name of the kernel's directory for it: `1-2.3` is port 3 of the hub at port 2 of bus 1.
    let portPath: String

    /// Keeps a reference on the device that `raw` names.
    init(_ raw: OpaquePointer, of context: LibUSBContext) {
        self.context = context
        unsafe self.raw = libusb_ref_device(raw)
        unsafe identity = Identity(raw)
        bus = unsafe libusb_get_bus_number(raw)
        address = unsafe libusb_get_device_address(raw)
        var descriptor = libusb_device_descriptor()
        _ = unsafe libusb_get_device_descriptor(raw, &descriptor)
        vendor = descriptor.idVendor
        product = descriptor.idProduct
        deviceClass = descriptor.bDeviceClass
        // USB 3.2, 10.16: a chain has at most five hubs, so at most six ports and the root's.
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

    /// The speed that libusb's number stands for.
    static func speed(_ number: CInt) -> USBSpeed? {
        switch libusb_speed(UInt32(bitPattern: number)) {
        case LIBUSB_SPEED_LOW: .low
        case LIBUSB_SPEED_FULL: .full
        case LIBUSB_SPEED_HIGH: .high
        case LIBUSB_SPEED_SUPER: .superSpeed
        case LIBUSB_SPEED_SUPER_PLUS, superPlusByTwo: .superSpeedPlus
        default: nil
        }
    }

    /// LIBUSB_SPEED_SUPER_PLUS_X2, two lanes of 10 Gb/s each, which only later versions know.
    private static let superPlusByTwo = libusb_speed(6)

    var isHub: Bool { UInt32(deviceClass) == LIBUSB_CLASS_HUB.rawValue }

    /// What opens the device, on any thread, for as long as there is a reference on the device.
    var opener: Opener { unsafe Opener(raw: raw) }

    @safe
    struct Opener: @unchecked Sendable {
        fileprivate let raw: OpaquePointer

        /// Opens the device node. The kernel may wake the device up first, or wait for a driver.
        func open() throws(LibUSBError) -> LibUSBHandle.Pointer {
            var handle: OpaquePointer?
            try libusb { unsafe libusb_open(raw, &handle) }
            guard let handle = unsafe handle else { throw .noDevice }
            return unsafe LibUSBHandle.Pointer(raw: handle)
        }
    }
}
