// SPDX-License-Identifier: Apache-2.0

internal import BackendKit
public import Logging
public import Platform
public import SystemPackage

/// The control socket, at which several clients at a time attach, detach and operate devices
/// (docs/control-protocol.md).
///
/// A client that can connect may send every request, so the permissions of the socket's file decide
/// who controls the program.
public final class ControlServer {
    private let server: Server
    private let devices: DeviceTable
    private let loop: any EventLoop
    private let logger: Logger
    private let timeout: Duration
    private var acceptor: Acceptor?
    private var connections: [ControlConnection] = []

    /// Serves requests about the devices of a table at a listening socket.
    public convenience init(
        listener: ListeningSocket, server: Server, devices: DeviceTable, loop: any EventLoop,
        logger: Logger
    ) throws(Errno) {
        try self.init(
            listener: listener, server: server, devices: devices, loop: loop, logger: logger,
            timeout: ServiceLimits.controlTimeout)
    }

    /// - Parameter timeout: see ``ServiceLimits/controlTimeout``.
    package init(
        listener: ListeningSocket, server: Server, devices: DeviceTable, loop: any EventLoop,
        logger: Logger, timeout: Duration
    ) throws(Errno) {
        self.server = server
        self.devices = devices
        self.loop = loop
        self.logger = logger
        self.timeout = timeout
        acceptor = try Acceptor(listener: listener, loop: loop) { [logger] error in
            logger.error(
                "cannot accept a control client: \(error); retrying in \(Acceptor.retryDelay)")
        } onClient: { [unowned self] socket in
            connect(socket)
        }
    }

    /// The number of connected clients.
    package var clientCount: Int { connections.count }

    // MARK: - Clients

    private func connect(_ socket: consuming OwnedDescriptor) {
        guard connections.count < ServiceLimits.controlClients else {
            let error = ControlError(
                .tooMany,
                "\(ServiceLimits.controlClients) control clients are connected: try again later")
            // A client whose socket has no room for one line does not get the reason.
            unsafe ControlAnswer(error).line.withUnsafeBytes { bytes in
                _ = try? unsafe UnixSocket.send(bytes, to: socket)
            }
            return
        }
        var this: ControlConnection?
        let connection = ControlConnection(
            socket: socket, loop: loop, timeout: timeout, operations: devices.operations
        ) { [unowned self] request, descriptor, completion in
            execute(request, descriptor, completion)
        } onEnd: { [weak self] in
            self?.connections.removeAll { $0 === this }
            this = nil
        }
        this = connection
        connections.append(connection)
    }

    // MARK: - Requests

    private func execute(
        _ request: ControlSocketRequest, _ descriptor: ReceivedDescriptor?,
        _ completion: @escaping (ControlAnswer) -> Void
    ) {
        do throws(ControlError) {
            switch request {
            case .list: completion(list())
            case .attach(let specification, let id):
                try devices.attach(specification, id: id, descriptor: descriptor) {
                    [logger] result in
                    do throws(ControlError) {
                        let device = try result.get()
                        logger.notice("'\(device.id)' attached: \(device.summary ?? specification)")
                        var answer = ControlAnswer()
                        answer.device = device
                        completion(answer)
                    } catch {
                        completion(ControlAnswer(error))
                    }
                }
            case .detach(let id):
                try devices.detach(id) { [logger] error in
                    logger.notice("'\(id)' detached\(error.map { ": \($0)" } ?? "")")
                    completion(ControlAnswer(orError: error))
                }
            case .execute(let operation, let id, let arguments):
                try devices.execute(operation, arguments, on: id, descriptor: descriptor) { error in
                    completion(ControlAnswer(orError: error))
                }
            }
        } catch {
            completion(ControlAnswer(error))
        }
    }

    private func list() -> ControlAnswer {
        var answer = ControlAnswer()
        answer.version = ControlAnswer.protocolVersion
        answer.hasClient = server.hasClient
        answer.devices = devices.devices
        return answer
    }
}

extension ControlAnswer {
    /// The answer without a result: success if there is no error.
    fileprivate init(orError error: ControlError?) {
        if let error { self.init(error) } else { self.init() }
    }
}
