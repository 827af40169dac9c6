// SPDX-License-Identifier: Apache-2.0

public import BackendKit
public import Logging
public import Platform
internal import USB

/// The devices of the program: which there are, what they are called, how they come and go.
public final class DeviceTable {
    private final class Entry {
        let id: String
        let specification: String
        let backend: any DeviceBackend
        let bus: RecordingBus
        /// A request for it is under way.
        var isBusy = false
        var isDetaching = false

        init(
            id: String, specification: String, backend: any DeviceBackend, bus: RecordingBus
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
    private var entries: [Entry] = []
    /// Open, and to be plugged in all together.
    private var opened: [Entry] = []
    /// The last number given to a device of each kind. It is not given again: an id that a script
    /// remembers must not come to mean another device.
    private var numbers: [String: Int] = [:]
    private var followUps: [Int: Watch] = [:]
    private var nextFollowUp = 0

    /// A table without devices, whose devices are plugged into a server's bus.
    public init(catalog: BackendCatalog, server: Server, loop: any EventLoop, logger: Logger) {
        self.catalog = catalog
        self.server = server
        self.loop = loop
        self.logger = logger
    }

    // MARK: - Coming

    /// Opens a device and plugs it in, without making the loop wait. `done` is called on the loop, at
    /// once or later; until then it is a device that is waited for.
    ///
    /// - Parameters:
    ///   - id: what it is to be called, if that does not stand in the specification.
    ///   - descriptor: what the specification names, if it has been opened already.
    func attach(
        _ text: String, id: String? = nil, descriptor: ReceivedDescriptor? = nil,
        whenDone done: @escaping (Result<ControlDevice, ControlError>) -> Void
    ) throws(ControlError) {
        let entry = try prepare(text, id: id, descriptor: descriptor, isServing: true)
        entry.isBusy = true
        entries.append(entry)
        entry.backend.start(on: entry.bus) { [self] error in
            entry.isBusy = false
            guard let error else { return done(.success(describe(entry))) }
            entries.removeAll { $0 === entry }
            drop(entry) { done(.failure(ControlError(.refused, error.reason))) }
        }
    }

    /// Opens a device and no more; ``plugInOpened()`` follows.
    public func open(_ text: String) throws(ControlError) {
        opened.append(try prepare(text, id: nil, descriptor: nil, isServing: false))
    }

    /// Plugs in what was opened, in that order.
    public func plugInOpened() throws(ControlError) {
        while !opened.isEmpty { try plugIn(opened.removeFirst()) }
    }

    private func prepare(
        _ text: String, id: String?, descriptor: ReceivedDescriptor?, isServing: Bool
    ) throws(ControlError) -> Entry {
        guard text.utf8.count <= ServiceLimits.specification else {
            throw ControlError(
                .badRequest,
                "a specification of \(text.utf8.count) bytes; \(ServiceLimits.specification) are allowed"
            )
        }
        guard entries.count + opened.count < ServiceLimits.devices else {
            throw ControlError(
                .tooMany, "there are \(ServiceLimits.devices) devices already: detach one first")
        }
        let (type, specification) = try refusing { () throws(BackendError) in
            try catalog.resolve(text)
        }
        let name = try name(id, specification, type)
        let context = BackendContext(
            loop: loop, logger: logger, descriptor: descriptor, isServing: isServing)
        let backend = try refusing { () throws(BackendError) in
            try type.init(specification, context: context)
        }
        return Entry(
            id: name, specification: text, backend: backend, bus: RecordingBus(server.bus))
    }

    private func plugIn(_ entry: Entry) throws(ControlError) {
        try refusing { () throws(BackendError) in try entry.backend.start(on: entry.bus) }
        entries.append(entry)
    }

    private func isTaken(_ id: String) -> Bool {
        (entries + opened).contains { $0.id == id }
    }

    /// What a device is to be called: what the operator says, or the kind and a number.
    private func name(
        _ wanted: String?, _ specification: DeviceSpecification, _ type: any DeviceBackend.Type
    ) throws(ControlError) -> String {
        let written = try refusing { () throws(BackendError) in try specification.identifier() }
        if let wanted {
            try refusing { () throws(BackendError) in
                try DeviceSpecification.checkIdentifier(wanted)
            }
            guard written == nil || written == wanted else {
                throw ControlError(
                    .badRequest, "the device is called both '\(wanted)' and '\(written ?? "")'")
            }
        }
        if let name = wanted ?? written {
            try checkFree(name)
            return name
        }
        while true {
            let number = (numbers[type.scheme] ?? 0) &+ 1
            numbers[type.scheme] = number
            let name = "\(type.scheme)-\(number)"
            if !isTaken(name) { return name }
        }
    }

    private func checkFree(_ id: String) throws(ControlError) {
        guard !isTaken(id) else {
            throw ControlError(
                .idTaken, "there is a device '\(id)' already: choose another id, or detach it first"
            )
        }
    }

    private func refusing<Result>(
        _ body: () throws(BackendError) -> Result
    ) throws(ControlError) -> Result {
        do throws(BackendError) { return try body() } catch {
            throw ControlError(.refused, error.reason)
        }
    }

    // MARK: - Changing and going

    /// Makes a change at a device; `done` is called on the loop, after this returns.
    func change(
        _ id: String, whenDone done: @escaping (ControlError?) -> Void,
        _ change: (any DeviceBackend) throws(BackendError) -> BackendChange
    ) throws(ControlError) {
        let entry = try idle(id)
        let backend = entry.backend
        let wanted = try refusing { () throws(BackendError) in try change(backend) }
        guard let reconfigurable = backend as? any ReconfigurableBackend else {
            throw ControlError(.refused, BackendError.unsupported(wanted, by: backend).reason)
        }
        entry.isBusy = true
        reconfigurable.configure(wanted) { [self] error in
            entry.isBusy = false
            // When the backend has let go of what it held for the change.
            followUp {
                done(error.map { ControlError($0.wasDone ? .failed : .refused, $0.reason) })
            }
        }
    }

    /// Unplugs a device. `done` is called on the loop when its data is written and what it was made of
    /// is free for others.
    func detach(
        _ id: String, whenDone done: @escaping (ControlError?) -> Void
    ) throws(ControlError) {
        let entry = try idle(id)
        entry.isBusy = true
        entry.isDetaching = true
        entry.backend.stop { [self] error in
            entries.removeAll { $0 === entry }
            drop(entry) {
                done(error.map { ControlError(.failed, "'\(id)' is detached, but \($0.reason)") })
            }
        }
    }

    /// Lets go of a backend, which must not end in the midst of what it does, and goes on after that.
    private func drop(_ entry: Entry, then body: @escaping () -> Void) {
        var last: Entry? = entry
        followUp {
            last = nil
            _ = last
            body()
        }
    }

    /// Ends all devices, waiting for what they have to write.
    ///
    /// - Returns: whether all of it was written; what was not is in the log.
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
        followUps = [:]
        return isWritten
    }

    private func idle(_ id: String) throws(ControlError) -> Entry {
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

    private func followUp(_ body: @escaping () -> Void) {
        let number = nextFollowUp
        nextFollowUp &+= 1
        followUps[number] = loop.schedule(at: loop.now) { [weak self] in
            self?.followUps[number] = nil
            body()
        }
    }

    // MARK: - Telling

    /// How many devices there are.
    public var count: Int { entries.count }

    /// In the order in which they came.
    var devices: [ControlDevice] { entries.map { describe($0) } }

    private func describe(_ entry: Entry) -> ControlDevice {
        let device = entry.bus.device
        let port = device.flatMap { server.port(of: $0) }
        let state: ControlDevice.State =
            entry.isDetaching ? .detaching : port == nil ? .waiting : .attached
        return ControlDevice(
            id: entry.id, specification: entry.specification,
            summary: device?.summary, speed: device.map { $0.speed.name }, port: port,
            state: state)
    }

    /// What a medium's parameters are for a backend: written with its scheme or without.
    static func medium(
        _ text: String, for backend: any DeviceBackend
    ) throws(BackendError) -> DeviceSpecification {
        let prefix = "\(type(of: backend).scheme):"
        return try DeviceSpecification(
            parsing: text.hasPrefix(prefix) ? text : prefix + text)
    }
}

/// The bus as one backend sees it; it remembers what the backend has plugged in, as long as that
/// lives: a device that leaves by itself is not unplugged by anybody, and must not stay for this.
private final class RecordingBus: USBBus {
    private let bus: any USBBus
    private(set) weak var device: (any USBDevice)?

    init(_ bus: any USBBus) { self.bus = bus }

    func attach(_ device: any USBDevice) throws(AttachError) {
        try bus.attach(device)
        self.device = device
    }

    func detach(_ device: any USBDevice) {
        bus.detach(device)
        if self.device === device { self.device = nil }
    }
}

extension USBSpeed {
    /// In one word, as requests and answers have it.
    fileprivate var name: String {
        switch self {
        case .low: "low"
        case .full: "full"
        case .high: "high"
        case .superSpeed: "super"
        case .superSpeedPlus: "super-plus"
        }
    }
}
