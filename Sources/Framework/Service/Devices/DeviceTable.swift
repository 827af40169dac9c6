// SPDX-License-Identifier: Apache-2.0

public import BackendKit
public import Logging
public import Platform
internal import USB

/// The devices of the program with their backends, in the order in which they were attached.
///
/// Requests name a device by its id. A device executes one request at a time.
public final class DeviceTable {
    private final class Entry {
        let id: String
        let specification: String
        let backend: any DeviceBackend
        let bus: TrackingBus
        /// Whether a request for the device is being executed.
        var isBusy = false
        var isDetaching = false

        init(
            id: String, specification: String, backend: any DeviceBackend, bus: TrackingBus
        ) {
            self.id = id
            self.specification = specification
            self.backend = backend
            self.bus = bus
        }
    }

    private let catalog: BackendCatalog
    private let server: Server
    private let loop: any EventLoop
    private let logger: Logger
    private let resources = SharedResources()
    private var entries: [Entry] = []
    /// Devices that are open and not attached yet.
    private var opened: [Entry] = []
    private var identifiers = DeviceIdentifiers()
    private let deferred: DeferredCalls

    /// Creates an empty table, whose devices will be attached to a server's bus.
    public init(catalog: BackendCatalog, server: Server, loop: any EventLoop, logger: Logger) {
        self.catalog = catalog
        self.server = server
        self.loop = loop
        self.logger = logger
        deferred = DeferredCalls(loop)
    }

    /// The operations that the backends declare.
    var operations: [BackendOperation] { catalog.operations }

    // MARK: - Attaching

    /// Opens a device and attaches it, without blocking the loop.
    ///
    /// - Parameters:
    ///   - text: the specification or bare name.
    ///   - id: the device's id, unless the specification has one.
    ///   - descriptor: the file or device node of the specification, if a client has opened it.
    ///   - completion: called on the loop, at once or later. Until then the table lists the device
    ///     as waiting.
    func attach(
        _ text: String, id: String? = nil, descriptor: ReceivedDescriptor? = nil,
        completion: @escaping (Result<ControlDevice, ControlError>) -> Void
    ) throws(ControlError) {
        let entry = try makeEntry(text, id: id, descriptor: descriptor, isServing: true)
        entry.isBusy = true
        entries.append(entry)
        entry.backend.start(on: entry.bus) { [self] error in
            entry.isBusy = false
            guard let error else { return completion(.success(describe(entry))) }
            entries.removeAll { $0 === entry }
            release(entry) { completion(.failure(ControlError(.refused, error.reason))) }
        }
    }

    /// Opens a device before the program serves clients. ``attachOpened()`` attaches it.
    public func open(_ text: String) throws(ControlError) {
        opened.append(try makeEntry(text, id: nil, descriptor: nil, isServing: false))
    }

    /// Attaches the devices that ``open(_:)`` has opened, in that order.
    public func attachOpened() throws(ControlError) {
        while !opened.isEmpty {
            let entry = opened.removeFirst()
            try Self.refusing { () throws(BackendError) in try entry.backend.start(on: entry.bus) }
            entries.append(entry)
        }
    }

    private func makeEntry(
        _ text: String, id: String?, descriptor: ReceivedDescriptor?, isServing: Bool
    ) throws(ControlError) -> Entry {
        guard text.utf8.count <= ServiceLimits.specification else {
            throw ControlError(
                .badRequest,
                "the specification has \(text.utf8.count) bytes; at most "
                    + "\(ServiceLimits.specification) are allowed")
        }
        guard count + opened.count < ServiceLimits.devices else {
            throw ControlError(
                .tooMany, "there are \(ServiceLimits.devices) devices already: detach one first")
        }
        let (type, specification) = try Self.refusing { () throws(BackendError) in
            try catalog.resolve(text)
        }
        let id = try identifiers.identifier(
            for: specification, wanted: id, taken: (entries + opened).map(\.id))
        let context = BackendContext(
            loop: loop, logger: logger, descriptor: descriptor, isServing: isServing,
            resources: resources)
        let backend = try Self.refusing { () throws(BackendError) in
            try type.init(specification, context: context)
        }
        return Entry(id: id, specification: text, backend: backend, bus: TrackingBus(server.bus))
    }

    /// Runs a call to a backend; its errors become refusals.
    private static func refusing<Result>(
        _ body: () throws(BackendError) -> Result
    ) throws(ControlError) -> Result {
        do throws(BackendError) { return try body() } catch {
            throw ControlError(.refused, error.reason)
        }
    }

    // MARK: - Operating and detaching

    /// Executes an operation on a device.
    ///
    /// - Parameters:
    ///   - arguments: the arguments, checked against the declaration.
    ///   - descriptor: the open file or device node that came with the request.
    ///   - completion: called on the loop, after this returns.
    func execute(
        _ operation: BackendOperation, _ arguments: [String: ArgumentValue], on id: String,
        descriptor: ReceivedDescriptor?, completion: @escaping (ControlError?) -> Void
    ) throws(ControlError) {
        let entry = try idleEntry(id)
        let type = type(of: entry.backend)
        let call = try Self.refusing { () throws(BackendError) in
            try OperationCall(operation, arguments, for: type, descriptor: descriptor)
        }
        guard let backend = entry.backend as? any OperableBackend,
            BackendCatalog.operations(of: type).contains(where: { $0.name == operation.name })
        else {
            throw ControlError(.refused, operation.unsupportedError(for: type).reason)
        }
        entry.isBusy = true
        backend.execute(call) { [self] error in
            entry.isBusy = false
            // Until the backend returns it may still use objects such as the old image.
            deferred.call {
                completion(
                    error.map { ControlError($0.tookEffect ? .failed : .refused, $0.reason) })
            }
        }
    }

    /// Detaches a device.
    ///
    /// - Parameter completion: called on the loop when the device's data is written and its file or
    ///   host device is free for others.
    func detach(
        _ id: String, completion: @escaping (ControlError?) -> Void
    ) throws(ControlError) {
        let entry = try idleEntry(id)
        entry.isBusy = true
        entry.isDetaching = true
        entry.backend.stop { [self] error in
            entries.removeAll { $0 === entry }
            release(entry) {
                completion(
                    error.map { ControlError(.failed, "'\(id)' is detached, but \($0.reason)") })
            }
        }
    }

    /// Releases a removed device's backend, then calls `completion`. Both are deferred, because the
    /// backend must not be deallocated while one of its functions runs.
    private func release(_ entry: Entry, completion: @escaping () -> Void) {
        var last: Entry? = entry
        deferred.call {
            last = nil
            _ = last
            completion()
        }
    }

    /// Detaches all devices and blocks until their data is written.
    ///
    /// - Returns: whether all data has been written; errors are in the log.
    @discardableResult
    public func stop() -> Bool {
        var isWritten = true
        for entry in entries.reversed() {
            do throws(BackendError) { try entry.backend.stop() } catch {
                isWritten = false
                logger.error("\(entry.id): \(error)")
            }
        }
        entries = []
        opened = []
        deferred.cancelAll()
        return isWritten
    }

    private func idleEntry(_ id: String) throws(ControlError) -> Entry {
        guard let entry = entries.first(where: { $0.id == id }) else {
            let ids = entries.map(\.id).joined(separator: ", ")
            throw ControlError(
                .noSuchDevice,
                "no device '\(id)'; there are: \(ids.isEmpty ? "none" : ids)")
        }
        guard !entry.isBusy else {
            throw ControlError(
                .busy, "another request for '\(id)' is under way: wait for its answer")
        }
        return entry
    }

    // MARK: - Listing

    /// The number of devices.
    public var count: Int { entries.count }

    /// The devices as answers describe them.
    var devices: [ControlDevice] { entries.map { describe($0) } }

    private func describe(_ entry: Entry) -> ControlDevice {
        let device = entry.bus.device
        let port = device.flatMap { server.port(of: $0) }
        let state: ControlDevice.State =
            entry.isDetaching ? .detaching : port == nil ? .waiting : .attached
        return ControlDevice(
            id: entry.id, specification: entry.specification, summary: device?.summary,
            speed: device.map { ControlDevice.name(of: $0.speed) }, port: port, state: state)
    }
}

extension ControlDevice {
    /// The word for a speed in answers.
    fileprivate static func name(of speed: USBSpeed) -> String {
        switch speed {
        case .low: "low"
        case .full: "full"
        case .high: "high"
        case .superSpeed: "super"
        case .superSpeedPlus: "super-plus"
        }
    }
}
