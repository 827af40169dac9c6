// SPDX-License-Identifier: Apache-2.0

internal import DMA
public import Logging
public import Platform
public import SystemPackage
public import USB
internal import VFIOUser
internal import XHCI

/// The program's heart: one controller, served to one client at a time.
///
/// A turn of the loop handles whatever is ready, messages of the client and completions of devices
/// alike, and only then lets the controller work: so several register writes of a guest cost one
/// pass, and several completions one interrupt.
public final class Server {
    private let loop: EpollLoop
    private let logger: Logger
    private let function: XHCIFunction
    private var acceptor: Acceptor?
    private var connection: Connection?
    /// Whether the end of the client is the end of the server: it came by itself, not by a listener.
    private var endsWithClient = false
    private var isStopping = false
    /// When the controller wants to work next, events or not.
    private var nextWork: Duration?

    /// A controller without devices and without a client.
    public init(loop: EpollLoop, logger: Logger) {
        self.loop = loop
        self.logger = logger
        function = XHCIFunction(loop: loop, logger: logger)
    }

    /// Where devices are plugged in. They stay while clients come and go.
    public var bus: any USBBus { function.controller }

    /// The port that a device is plugged into, counting from 1 as the guest does; `nil` if none.
    public func port(of device: any USBDevice) -> Int? { function.controller.port(of: device) }

    /// Whether a client is connected.
    public var hasClient: Bool { connection != nil }

    /// Serves the clients that connect to `listener`, one after the other.
    public func listen(on listener: ListeningSocket) throws(Errno) {
        acceptor = try Acceptor(listener: listener, loop: loop) { [unowned self] in
            guard connection != nil else { return true }
            // It stays in the queue of the listening socket. A VM that reboots connects anew before
            // its old connection is seen to end, so refusing would be wrong.
            logger.notice("another client waits until the present one has left")
            return false
        } onFailure: { [logger] error in
            logger.error("cannot accept a client: \(error); retrying in \(Acceptor.retryDelay)")
        } onClient: { [unowned self] (socket) throws(Errno) in
            try connect(socket)
        }
    }

    /// Serves the client at the other end of `socket`, then ends ``run()``.
    public func serve(_ socket: consuming OwnedDescriptor) throws(Errno) {
        try socket.setNonblocking()
        endsWithClient = true
        try connect(socket)
    }

    /// Serves until ``stop()``.
    public func run() throws(Errno) {
        while !isStopping { try turn() }
        acceptor = nil
        if connection != nil { clientEnded(.closedByServer) }
        // Lets the controller see what its reset has left to do.
        _ = function.service(now: loop.now)
    }

    /// One turn of the loop: what is ready, then the controller's work.
    ///
    /// - Parameter limit: when to return although nothing happened.
    package func turn(until limit: Duration? = nil) throws(Errno) {
        try loop.turn(until: nextWork.map { min($0, limit ?? $0) } ?? limit)
        nextWork = function.service(now: loop.now)
    }

    /// Ends ``run()`` at the end of this turn. To be called on the loop.
    public func stop() { isStopping = true }

    // MARK: - Clients

    private func connect(_ socket: consuming OwnedDescriptor) throws(Errno) {
        let connection = try Connection(
            socket: socket, device: function, loop: loop, logger: logger
        ) { [unowned self] end in clientEnded(end) }
        self.connection = connection
        function.clientCame(connection)
        logger.notice("client connected")
    }

    private func clientEnded(_ end: Connection.End) {
        connection = nil
        function.clientLeft()
        switch end {
        case .clientLeft: logger.notice("client left")
        case .closedByServer: logger.notice("client disconnected")
        case .protocolViolation(let what): logger.error("client broke the protocol: \(what)")
        case .clientStoppedReading: logger.error("client no longer reads its answers")
        case .failed(let error): logger.error("connection failed: \(error)")
        }
        if endsWithClient { stop() }
        if !isStopping { acceptor?.resume() }
    }
}
