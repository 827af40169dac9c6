// SPDX-License-Identifier: Apache-2.0

public import BackendKit
internal import Logging
internal import Platform
internal import SystemPackage
public import USB

/// The backend `storage:file=PATH…`: an image file or a block device of the host as a USB stick.
public final class StorageBackend: DeviceBackend {
    public static let scheme = "storage"
    public static let summary = "an image file or a block device as a USB stick"
    public static let example = "storage:file=disk.img"
    public static let parameters = [
        Parameter(
            "file", value: "PATH", isRequired: true,
            summary: "the image; its size is a multiple of 512 bytes"),
        Parameter("readonly", value: nil, summary: "the guest cannot write; the file is shared"),
        Parameter(
            "serial", value: "TEXT",
            summary: "serial number; by default derived from the path"),
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
    private let device: MassStorageDevice
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
        var identity = InquiryIdentity(serialNumber: "")
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
                "cannot start a thread for '\(path)': \(error): check the limits of threads and "
                    + "open files (`ulimit -u`, `ulimit -n`)")
        }
        let unit = LogicalUnit(
            identity: identity, blockCount: image.byteCount / UInt64(blockSize),
            isReadOnly: readOnly, writeCache: cache != .writethrough)
        device = MassStorageDevice(
            image: image, unit: unit, speed: speed,
            offersUAS: try specification.flag("uas") ?? false, summary: Self.summary(path),
            worker: worker, logger: logger)
    }

    /// Opens the image of a specification, or adopts the descriptor that came with the request.
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
        if let error = image.directError {
            let cause =
                error == .invalidArgument
                ? "its file system does not support direct I/O" : "cannot reopen it: \(error)"
            logger.warning("no direct I/O for '\(path)', cache=none uses the page cache: \(cause)")
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

    /// Whether the worker has no job of the device.
    package var isIdle: Bool { device.isIdle }

    /// Detaches the device and flushes the image; blocks the event loop.
    public func stop() throws(BackendError) {
        detach()
        do throws(Errno) { try device.flushNow() } catch { throw flushFailed(error) }
    }

    /// Detaches the device and flushes the image on the worker.
    public func stop(completion: @escaping (BackendError?) -> Void) {
        detach()
        device.flush { [self] error in completion(error.map { flushFailed($0) }) }
    }

    private func detach() {
        bus?.detach(device)
        bus = nil
    }

    private func flushFailed(_ error: Errno) -> BackendError {
        BackendError("the cached data of '\(device.summary)' could not be written: \(error)")
    }
}

extension StorageBackend: OperableBackend {
    /// The parameters of a medium; all others are parameters of the stick.
    private static let mediumParameters = ["file", "readonly"]

    private static let force = BackendOperation.Argument(
        "force", .flag,
        summary:
            "Change the medium even if the guest has locked it, or its cached data cannot be "
            + "written.")

    public static let operations = [
        BackendOperation(
            "insert", summary: "Put another image into a stick of a running server.",
            discussion:
                "The guest sees a medium change. Its writes to the old medium are on the disk when "
                + "this returns.",
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
            discussion: "The stick stays plugged in. When this returns, other programs can use "
                + "the image.",
            device: "stick", arguments: [force], confirmation: "ejected",
            absence: "has no medium"),
    ]

    public func execute(_ call: OperationCall, completion: @escaping (BackendError?) -> Void) {
        let force = call.flag("force")
        do throws(BackendError) {
            try checkMediumChange(force: force)
            // Only `insert` has a specification.
            guard let specification = call.specification("spec") else {
                return changeMedium(nil, nil, force: force, completion)
            }
            for (name, _) in specification.parameters
            where !Self.mediumParameters.contains(name) {
                throw BackendError(
                    "'\(name)' is a parameter of the stick, not of a medium; there are: "
                        + Self.mediumParameters.joined(separator: ", "))
            }
            let image = try Self.image(
                specification, call.descriptor, cache: cache, logger: logger)
            changeMedium(image, try specification.value(of: "file"), force: force, completion)
        } catch {
            completion(error)
        }
    }

    private func checkMediumChange(force: Bool) throws(BackendError) {
        guard device.isRemovable else {
            throw BackendError(
                "the medium of this stick is not removable (removable=off): detach the stick")
        }
        guard !device.isChangingMedium else {
            throw BackendError("a medium change is in progress: try again")
        }
        guard force || !device.isRemovalLocked else {
            throw BackendError(
                "the guest has locked the medium, perhaps it is mounted: unmount it in the guest, "
                    + "or use force, which is like pulling the medium out")
        }
    }

    private func changeMedium(
        _ image: FileImage?, _ path: String?, force: Bool,
        _ completion: @escaping (BackendError?) -> Void
    ) {
        device.changeMedium(to: image, force: force) { [self] error in
            let error = error.map { flushFailed($0) }
            if let error, !force { return completion(error) }
            device.summary = Self.summary(path)
            completion(
                error.map {
                    BackendError(
                        "the medium has been changed, but data is lost: \($0)", tookEffect: true)
                })
        }
    }
}

extension DeviceSpecification {
    /// A parameter for a field of INQUIRY data, which contains printable ASCII characters.
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
