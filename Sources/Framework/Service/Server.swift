// SPDX-License-Identifier: Apache-2.0

internal import DMA
public import Logging
public import Platform
public import SystemPackage
public import USB
internal import VFIOUser
internal import XHCI

/// The virtual USB host controller, served to one client at a time.
///
/// Each turn of the loop handles the client's messages and the devices' completions first and then
/// services the controller once, so several register writes cost one pass over the rings and
/// several completions one interrupt.
public final class Server {
    private let loop: EpollLoop
    private let logger: Logger
    private let function: XHCIFunction
    private var acceptor: Acceptor?
    private var connection: Connection?
    /// Whether ``run()`` ends when the client disconnects, because no other can connect.
    private var servesOneClient = false
    private var isStopping = false
    /// The time at which the controller must be serviced next, even without an event.
    private var nextService: Duration?

    /// Creates a controller without devices and without a client.
    public init(loop: EpollLoop, logger: Logger) {
        self.loop = loop
        self.logger = logger
        function = XHCIFunction(loop: loop, logger: logger)
    }

    /// The root hub. Devices stay attached while clients come and go.
    public var bus: any USBBus { function.controller }

    /// The root hub port that a device is attached to, from 1; `nil` if it is attached to none.
    public func port(of device: any USBDevice) -> Int? { function.controller.port(of: device) }

    /// Whether a client is connected.
    public var hasClient: Bool { connection != nil }

    /// Serves the clients that connect to a listening socket, one after the other.
    public func listen(on listener: ListeningSocket) throws(Errno) {
        acceptor = try Acceptor(listener: listener, loop: loop) { [unowned self] in
            canAcceptClient()
        } onFailure: { [logger] error in
            logger.error("cannot accept a client: \(error); retrying in \(Acceptor.retryDelay)")
        } onClient: { [unowned self] (socket) throws(Errno) in
            try connect(socket)
        }
    }

    /// Serves the client at the other end of a connected socket; ``run()`` ends when it
    /// disconnects.
    public func serve(_ socket: consuming OwnedDescriptor) throws(Errno) {
        try socket.setNonblocking()
        servesOneClient = true
        try connect(socket)
    }

    /// Runs the loop until ``stop()``, then disconnects the client.
    public func run() throws(Errno) {
        while !isStopping { try turn() }
        acceptor = nil
        if connection != nil { clientDisconnected(.closedByServer) }
        // Completes the reset that the disconnection began.
        _ = function.service(now: loop.now)
    }

    /// Runs one turn of the loop: the events that are ready, then the controller.
    ///
    /// - Parameter limit: the time at which to return even if nothing is ready.
    package func turn(until limit: Duration? = nil) throws(Errno) {
        try loop.turn(until: nextService.map { min($0, limit ?? $0) } ?? limit)
        nextService = function.service(now: loop.now)
    }

    /// Ends ``run()`` after the current turn. It must be called on the loop.
    public func stop() { isStopping = true }

    // MARK: - Clients

    private func canAcceptClient() -> Bool {
        guard connection != nil else { return true }
        // The client stays in the socket's queue. A VM that reboots connects anew before its old
        // connection is closed, so it must not be refused.
        logger.notice("a client is connected; the next one is served when it has disconnected")
        return false
    }

    private func connect(_ socket: consuming OwnedDescriptor) throws(Errno) {
        let connection = try Connection(
            socket: socket, device: function, loop: loop, logger: logger
        ) { [unowned self] end in clientDisconnected(end) }
        self.connection = connection
        function.clientConnected(connection)
        logger.notice("client connected")
    }

    private func clientDisconnected(_ end: Connection.End) {
        connection = nil
        function.clientDisconnected()
        switch end {
        case .clientDisconnected: logger.notice("client disconnected")
        case .closedByServer: logger.notice("disconnected the client")
        case .protocolViolation(let violation):
            logger.error("disconnected the client: it violated the protocol: \(violation)")
        case .clientStoppedReading:
            logger.error("disconnected the client: it does not read its replies")
        case .failed(let error): logger.error("lost the connection to the client: \(error)")
        }
        if servesOneClient { stop() }
        if !isStopping { acceptor?.resume() }
    }
}
