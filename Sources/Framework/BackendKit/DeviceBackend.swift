// SPDX-License-Identifier: Apache-2.0

public import USB

/// A source of USB devices that an operator can name on the command line.
///
/// A backend is chosen by its scheme, reads its own parameters and, once started, attaches one or
/// more devices to the bus. It exists until the operator detaches it or the program ends,
/// independent of guests and other backends. All calls and callbacks are made on the event loop.
public protocol DeviceBackend: AnyObject, SendableMetatype {
    /// The word before the colon of a device specification, such as `storage`: lowercase letters,
    /// digits and `-`.
    static var scheme: String { get }

    /// A phrase that says what the backend is for.
    static var summary: String { get }

    /// The parameters that may follow the colon, for help and error messages as well.
    static var parameters: [Parameter] { get }

    /// A valid specification, such as `storage:file=disk.img`.
    static var example: String { get }

    /// The names without a scheme that the backend recognises; none by default.
    static var bareNames: [BareName] { get }

    /// Checks a specification and opens the file or device that it names.
    ///
    /// The names of the parameters have been checked against ``parameters``; their values have not.
    ///
    /// - Throws: if a value is wrong, or a file or device cannot be opened.
    init(_ specification: DeviceSpecification, context: BackendContext) throws(BackendError)

    /// Attaches the devices, before the program serves clients. It may block.
    ///
    /// - Throws: if a device cannot be attached; the program then ends.
    func start(on bus: any USBBus) throws(BackendError)

    /// Attaches the devices while the loop is running; it must not block.
    ///
    /// Until the backend calls `completion`, it gets no other call than ``stop()``; after an error
    /// it gets none at all. The default calls ``start(on:)``.
    ///
    /// - Parameters:
    ///   - bus: the root hub.
    ///   - completion: called once, on the loop, before this returns or later, with `nil` or with
    ///     the reason why the devices cannot be attached.
    func start(on bus: any USBBus, completion: @escaping (BackendError?) -> Void)

    /// Detaches the devices, writes the data they have accepted, and closes files and devices. It
    /// may block, because the program ends.
    ///
    /// - Throws: an error that names the data that could not be written. The program logs it and
    ///   exits with an error.
    func stop() throws(BackendError)

    /// Detaches the devices before this returns, then writes the data they have accepted and closes
    /// files and devices, without blocking the loop.
    ///
    /// The program may call ``stop()`` before the backend has called `completion`. The default
    /// calls ``stop()``, for backends that never block there.
    ///
    /// - Parameter completion: called once, on the loop, before this returns or later, with `nil`
    ///   or with an error that names the data that could not be written.
    func stop(completion: @escaping (BackendError?) -> Void)

    /// Opens the file or device that a specification names, with the rights of the calling process.
    /// The process passes the descriptor to a running server (``BackendContext/descriptor``).
    ///
    /// - Returns: `nil` if there is nothing to open, which is the default.
    /// - Throws: if the file or device cannot be opened.
    static func open(_ specification: DeviceSpecification) throws(BackendError) -> OpenedDevice?
}

extension DeviceBackend {
    /// No names without a scheme.
    public static var bareNames: [BareName] { [] }

    /// Attaches the devices by ``start(on:)``.
    public func start(on bus: any USBBus, completion: @escaping (BackendError?) -> Void) {
        do throws(BackendError) {
            try start(on: bus)
            completion(nil)
        } catch {
            completion(error)
        }
    }

    /// Detaches the devices by ``stop()``.
    public func stop(completion: @escaping (BackendError?) -> Void) {
        do throws(BackendError) {
            try stop()
            completion(nil)
        } catch {
            completion(error)
        }
    }

    /// Returns `nil`: there is nothing to open.
    public static func open(
        _ specification: DeviceSpecification
    ) throws(BackendError) -> OpenedDevice? { nil }
}
