// SPDX-License-Identifier: Apache-2.0

public import Logging
public import Platform
public import USB

/// A source of USB devices that the operator can name on the command line.
///
/// A backend is chosen by its scheme, reads its own parameters and, once started, attaches one or
/// more devices to the bus. It lives until the operator takes it away or the program ends: guests
/// come and go meanwhile, and so do other backends.
public protocol DeviceBackend: AnyObject {
    /// The word before the colon of a device specification, such as `storage`.
    static var scheme: String { get }
    /// One line that says what the backend is for.
    static var summary: String { get }
    /// What may stand behind the colon; help and error messages are made from it.
    static var parameters: [Parameter] { get }
    /// An example specification that works, such as `storage:file=disk.img`.
    static var example: String { get }

    /// Checks the specification and opens what it names.
    init(_ specification: DeviceSpecification, context: BackendContext) throws(BackendError)

    /// Attaches the devices.
    func start(on bus: any USBBus) throws(BackendError)

    /// The same while the program serves somebody: what takes time is done elsewhere than on the loop.
    /// `done` is called once, on the loop, at once or later. Nothing else is asked of the backend before
    /// but ``stop()``; after an error nothing is.
    func start(on bus: any USBBus, whenDone done: @escaping (BackendError?) -> Void)

    /// Detaches the devices and gives back what was opened; data that was accepted is written. The
    /// program ends, so it may wait for that, with the loop standing still.
    ///
    /// - Throws: what could not be written. The program says so and ends with an error.
    func stop() throws(BackendError)

    /// The same while the program goes on: devices are detached before this returns, and what takes
    /// time is done elsewhere than on the loop. `done` is called once, on the loop, at once or later,
    /// with what went wrong; ``stop()`` may be called before that.
    func stop(whenDone done: @escaping (BackendError?) -> Void)

    /// Opens what a specification names, with the rights of the calling process: a program that has
    /// a running server attach the device passes it along. `nil` if there is nothing to open.
    static func open(_ specification: DeviceSpecification) throws(BackendError) -> OpenedDevice?
}

extension DeviceBackend {
    public func start(
        on bus: any USBBus, whenDone done: @escaping (BackendError?) -> Void
    ) {
        do throws(BackendError) {
            try start(on: bus)
            done(nil)
        } catch {
            done(error)
        }
    }

    public func stop(whenDone done: @escaping (BackendError?) -> Void) {
        do throws(BackendError) {
            try stop()
            done(nil)
        } catch {
            done(error)
        }
    }

    public static func open(
        _ specification: DeviceSpecification
    ) throws(BackendError) -> OpenedDevice? { nil }
}

/// What the program lends to each backend.
public struct BackendContext {
    public let loop: any EventLoop
    public let logger: Logger
    /// What the specification names, opened by whoever asked for the device. A backend that can use
    /// it takes it and opens nothing itself.
    public let descriptor: ReceivedDescriptor?
    /// The loop serves somebody: a backend is made without waiting for anything, and is started by
    /// ``DeviceBackend/start(on:whenDone:)``.
    public let isServing: Bool

    public init(
        loop: any EventLoop, logger: Logger, descriptor: ReceivedDescriptor? = nil,
        isServing: Bool = false
    ) {
        self.loop = loop
        self.logger = logger
        self.descriptor = descriptor
        self.isServing = isServing
    }
}

/// A parameter of a backend, as help and error messages show it.
public struct Parameter: Sendable {
    public let name: String
    /// What is to be put in, such as `PATH`; `nil` for a flag.
    public let value: String?
    public let isRequired: Bool
    public let summary: String

    public init(_ name: String, value: String?, isRequired: Bool = false, summary: String) {
        self.name = name
        self.value = value
        self.isRequired = isRequired
        self.summary = summary
    }
}

/// Why a backend cannot do what was asked, in words for the operator: what is wrong and what to do.
public struct BackendError: Error, Equatable, CustomStringConvertible {
    public let reason: String
    /// What was asked was done all the same, and something was lost.
    public let wasDone: Bool

    public init(_ reason: String, wasDone: Bool = false) {
        self.reason = reason
        self.wasDone = wasDone
    }

    public var description: String { reason }
}
