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
            "uas", value: "on|off",
            summary: "offers USB Attached SCSI: many commands at a time; default off"),
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

    private let worker: Worker
    private let device: StorageDevice
    private let logger: Logger
    private let cache: FileImage.CacheMode
    private weak var bus: (any USBBus)?

    public init(
        _ specification: DeviceSpecification, context: BackendContext
    ) throws(BackendError) {
        guard let path = try specification.value(of: "file") else {
            throw BackendError("'\(specification.text)' lacks 'file=PATH'")
        }
        let readOnly = try specification.flag("readonly") ?? false
        cache = try specification.choice("cache", of: FileImage.CacheMode.self) ?? .writeback
        let speed: USBSpeed =
            try specification.choice("speed", of: Speed.self) == .high ? .high : .superSpeed
        var identity = LogicalUnit.Identity(serialNumber: "")
        if let vendor = try specification.text("vendor", atMost: 8) { identity.vendor = vendor }
        if let product = try specification.text("product", atMost: 16) {
            identity.product = product
        }
        if let removable = try specification.flag("removable") { identity.isRemovable = removable }
        let serial = try specification.text("serial", atMost: 64)

        logger = context.logger
        let image = try Self.image(
            specification, context.descriptor, cache: cache, logger: logger)
        identity.serialNumber = serial ?? SerialNumber.derived(from: image.path)
        do throws(Errno) {
            worker = try Worker(name: "storage", loop: context.loop)
        } catch {
            throw BackendError(
                "cannot start a thread for '\(path)': \(error): look at the limits of threads and "
                    + "open files (`ulimit -u`, `ulimit -n`)")
        }
        let unit = LogicalUnit(
            identity: identity, blockCount: image.byteCount / UInt64(blockSize),
            isReadOnly: readOnly, writeCache: cache != .writethrough)
        device = StorageDevice(
            image: image, unit: unit, speed: speed,
            offersUAS: try specification.flag("uas") ?? false, summary: Self.summary(path),
            worker: worker, logger: logger)
    }

    /// Opens the image that a specification names, or takes it as it was opened by somebody else.
    private static func image(
        _ specification: DeviceSpecification, _ descriptor: ReceivedDescriptor?,
        cache: FileImage.CacheMode, logger: Logger
    ) throws(BackendError) -> FileImage {
        guard let path = try specification.value(of: "file") else {
            throw BackendError("'\(specification.text)' lacks 'file=PATH'")
        }
        let readOnly = try specification.flag("readonly") ?? false
        let image: FileImage
        do throws(ImageError) {
            if let descriptor = descriptor?.take() {
                image = try FileImage(descriptor, named: path, readOnly: readOnly, cache: cache)
            } else {
                image = try FileImage(path: path, readOnly: readOnly, cache: cache)
            }
        } catch {
            throw BackendError(error.reason)
        }
        if let problem = image.directProblem {
            let cause =
                problem == .invalidArgument
                ? "lies on a file system without direct access"
                : "may not be opened anew for direct access (\(problem))"
            logger.warning("'\(path)' \(cause): the page cache is used")
        }
        return image
    }

    private static func summary(_ path: String?) -> String {
        path.map { "storage \($0)" } ?? "storage without a medium"
    }

    public static func open(
        _ specification: DeviceSpecification
    ) throws(BackendError) -> OpenedDevice? {
        guard var path = try specification.value(of: "file") else { return nil }
        let readOnly = try specification.flag("readonly") ?? false
        let descriptor: OwnedDescriptor
        do throws(ImageError) {
            let file = try FileImage.open(path, readOnly: readOnly)
            path = try FileImage.canonicalPath(file, named: path)
            descriptor = file.release()
        } catch {
            throw BackendError(error.reason)
        }
        return OpenedDevice(descriptor, as: try specification.replacing("file", with: path))
    }

    public func start(on bus: any USBBus) throws(BackendError) {
        do throws(AttachError) {
            try bus.attach(device)
            self.bus = bus
        } catch {
            throw BackendError(
                cannotAttach: device.summary, error,
                remedy: device.speed == .high ? "use speed=super" : "use speed=high")
        }
    }

    /// Whether the stick's worker has nothing to do.
    package var isIdle: Bool { device.isIdle }

    /// Waits for the writes that are under way and writes what is cached.
    public func stop() throws(BackendError) {
        unplug()
        do throws(Errno) { try device.flushNow() } catch { throw notWritten(error) }
    }

    /// The same on the worker.
    public func stop(completion: @escaping (BackendError?) -> Void) {
        unplug()
        device.flush { [self] error in completion(error.map { notWritten($0) }) }
    }

    private func unplug() {
        bus?.detach(device)
        bus = nil
    }

    private func notWritten(_ error: Errno) -> BackendError {
        BackendError("'\(device.summary)' could not be written: \(error)")
    }
}

extension StorageBackend: OperableBackend {
    /// The parameters of a medium; the others belong to the stick.
    private static let mediumParameters = ["file", "readonly"]

    private static let force = BackendOperation.Argument(
        "force", .flag,
        summary:
            "Although the guest has locked the medium, or the old one cannot be written: as if it "
            + "were pulled out.")

    public static let operations = [
        BackendOperation(
            "insert", summary: "Put another image into a stick of a running server.",
            discussion:
                "The guest sees a medium that has changed. What it wrote to the old one is on "
                + "the disk when this returns.",
            device: "stick",
            arguments: [
                BackendOperation.Argument(
                    "spec", .specification, label: "medium",
                    summary: "The image, such as file=other.img or file=other.img,readonly."),
                force,
            ],
            example: "file=other.img", confirmation: "{spec} is in", absence: "has no medium"),
        BackendOperation(
            "eject", summary: "Take the image out of a stick of a running server.",
            discussion: "The stick stays plugged in. When this returns, the image can be used by "
                + "others.",
            device: "stick", arguments: [force], confirmation: "ejected",
            absence: "has no medium"),
    ]

    public func execute(_ call: OperationCall, completion: @escaping (BackendError?) -> Void) {
        let force = call.flag("force")
        do throws(BackendError) {
            try checkExchange(force: force)
            // Only `insert` has a specification.
            guard let specification = call.specification("spec") else {
                return exchange(nil, nil, force: force, completion)
            }
            for (name, _) in specification.parameters
            where !Self.mediumParameters.contains(name) {
                throw BackendError(
                    "'\(name)' belongs to the stick and not to a medium; there are: "
                        + Self.mediumParameters.joined(separator: ", "))
            }
            let image = try Self.image(
                specification, call.descriptor, cache: cache, logger: logger)
            exchange(image, try specification.value(of: "file"), force: force, completion)
        } catch {
            completion(error)
        }
    }

    private func checkExchange(force: Bool) throws(BackendError) {
        guard device.isRemovable else {
            throw BackendError(
                "the stick was made with 'removable=off', so its medium stays: detach the stick")
        }
        guard !device.isChangingMedium else {
            throw BackendError("the medium is being exchanged already: try again")
        }
        guard force || !device.isRemovalLocked else {
            throw BackendError(
                "the guest has locked the medium, perhaps it is mounted: unmount it there, or use "
                    + "force, as if the medium were pulled out")
        }
    }

    private func exchange(
        _ image: FileImage?, _ path: String?, force: Bool,
        _ completion: @escaping (BackendError?) -> Void
    ) {
        device.changeMedium(to: image, force: force) { [self] error in
            let problem = error.map { notWritten($0) }
            if let problem, !force { return completion(problem) }
            device.summary = Self.summary(path)
            completion(
                problem.map {
                    BackendError("the medium is another one now, but \($0)", tookEffect: true)
                })
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
