// SPDX-License-Identifier: Apache-2.0

public import BackendKit
internal import Logging
internal import Platform
internal import SystemPackage
public import USB

/// `storage:file=PATH…`: an image file or a block device of the host as a USB stick.
public final class StorageBackend: DeviceBackend {
    public static let scheme = "storage"
    public static let summary = "an image file or a block device as a USB stick"
    public static let example = "storage:file=disk.img"
    public static let parameters = [
        Parameter(
            "file", value: "PATH", isRequired: true,
            summary: "the image; its size is a multiple of 512 bytes"),
        Parameter("readonly", value: nil, summary: "the guest cannot write; the file is shared"),
        Parameter("serial", value: "TEXT", summary: "serial number; by default made of the path"),
        Parameter("vendor", value: "TEXT", summary: "vendor, at most 8 characters"),
        Parameter("product", value: "TEXT", summary: "product, at most 16 characters"),
        Parameter("speed", value: "high|super", summary: "USB 2 or USB 3; default super"),
        Parameter(
            "removable", value: "on|off", summary: "whether the medium can be ejected; default on"),
        Parameter(
            "cache", value: "writeback|writethrough|none",
            summary: "when a write counts as done: in the page cache until the guest flushes "
                + "(default), on the disk, or past the page cache"),
    ]

    private enum Speed: String, CaseIterable {
        case high
        case `super`
    }

    private let image: FileImage
    private let worker: Worker
    private let device: StorageDevice
    private let logger: Logger
    private weak var bus: (any USBBus)?

    public init(
        _ specification: DeviceSpecification, context: BackendContext
    ) throws(BackendError) {
        guard let path = try specification.value(of: "file") else {
            throw BackendError("'\(specification.text)' lacks 'file=PATH'")
        }
        let readOnly = try specification.flag("readonly") ?? false
        let cache = try specification.choice("cache", of: FileImage.CacheMode.self) ?? .writeback
        let speed: USBSpeed =
            try specification.choice("speed", of: Speed.self) == .high ? .high : .superSpeed
        var identity = LogicalUnit.Identity(serialNumber: "")
        if let vendor = try specification.text("vendor", atMost: 8) { identity.vendor = vendor }
        if let product = try specification.text("product", atMost: 16) {
            identity.product = product
        }
        if let removable = try specification.flag("removable") { identity.isRemovable = removable }
        let serial = try specification.text("serial", atMost: 64)

        do throws(ImageError) {
            image = try FileImage(path: path, readOnly: readOnly, cache: cache)
        } catch {
            throw BackendError(error.reason)
        }
        identity.serialNumber = serial ?? SerialNumber.derived(from: image.path)
        logger = context.logger
        if cache == .none && !image.isDirect {
            logger.warning(
                "'\(path)' lies on a file system without direct access: the page cache is used")
        }
        do throws(Errno) {
            worker = try Worker(name: "storage", loop: context.loop)
        } catch {
            throw BackendError("cannot start a thread for '\(path)': \(error)")
        }
        let unit = LogicalUnit(
            identity: identity, blockCount: image.byteCount / UInt64(blockSize),
            isReadOnly: readOnly, writeCache: cache != .writethrough)
        device = StorageDevice(
            image: image, unit: unit, speed: speed, summary: "storage \(path)", worker: worker,
            logger: logger)
    }

    public func start(on bus: any USBBus) throws(BackendError) {
        do throws(AttachError) {
            try bus.attach(device)
            self.bus = bus
        } catch {
            throw BackendError("cannot plug in '\(device.summary)': \(error)")
        }
    }

    /// Waits for the writes that are under way and writes what is cached.
    public func stop() {
        bus?.detach(device)
        bus = nil
        worker.waitUntilIdle()
        guard !image.isReadOnly else { return }
        do throws(Errno) {
            try image.flush()
        } catch {
            logger.error("'\(image.path)' could not be written: \(error)")
        }
    }
}

extension DeviceSpecification {
    /// A parameter that goes into SCSI's fields: printable ASCII.
    fileprivate func text(_ name: String, atMost count: Int) throws(BackendError) -> String? {
        guard let value = try value(of: name) else { return nil }
        guard value.utf8.count <= count, value.utf8.allSatisfy({ (0x20...0x7e).contains($0) })
        else {
            throw BackendError(
                "'\(name)=\(value)' must be at most \(count) printable ASCII characters")
        }
        return value
    }
}

enum SerialNumber {
    /// 16 hexadecimal digits (4.1.1 asks for at least 12) that stay the same for the same path, so
    /// that a guest finds its stick again. FNV-1a.
    static func derived(from text: String) -> String {
        var hash: UInt64 = 0xcbf2_9ce4_8422_2325
        for byte in text.utf8 { hash = (hash ^ UInt64(byte)) &* 0x100_0000_01b3 }
        let digits = String(hash, radix: 16, uppercase: true)
        return String(repeating: "0", count: 16 - digits.count) + digits
    }
}
