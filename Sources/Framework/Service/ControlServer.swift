// SPDX-License-Identifier: Apache-2.0

internal import BackendKit
public import Logging
public import Platform
public import SystemPackage

/// The control socket: several clients at a time ask for devices to come, go and change.
///
/// docs/control-protocol.md says what they may write. Whoever can connect can do all of it, so the
/// socket's file decides who that is.
public final class ControlServer {
    private let server: Server
    private let devices: DeviceTable
    private let loop: any EventLoop
    private let logger: Logger
    private let patience: Duration
    private var acceptor: Acceptor?
    private var connections: [ControlConnection] = []

    /// Serves requests about the devices of a table at a listening socket.
    public convenience init(
        listener: ListeningSocket, server: Server, devices: DeviceTable, loop: any EventLoop,
        logger: Logger
    ) throws(Errno) {
        try self.init(
            listener: listener, server: server, devices: devices, loop: loop, logger: logger,
            patience: ServiceLimits.controlPatience)
    }

    package init(
        listener: ListeningSocket, server: Server, devices: DeviceTable, loop: any EventLoop,
        logger: Logger, patience: Duration
    ) throws(Errno) {
        self.server = server
        self.devices = devices
        self.loop = loop
        self.logger = logger
        self.patience = patience
        acceptor = try Acceptor(listener: listener, loop: loop) { [logger] error in
            logger.error(
                "cannot accept a control client: \(error); retrying in \(Acceptor.retryDelay)")
        } onClient: { [unowned self] socket in
            connect(socket)
        }
    }

    /// How many clients are connected.
    package var clientCount: Int { connections.count }

    // MARK: - Clients

    private func connect(_ socket: consuming OwnedDescriptor) {
        guard connections.count < ServiceLimits.controlClients else {
            let error = ControlError(
                .tooMany,
                "\(ServiceLimits.controlClients) control clients are connected: try again later")
            // One that cannot take so few bytes at once does not learn why.
            unsafe ControlAnswer(error).line.withUnsafeBytes { bytes in
                _ = try? unsafe UnixSocket.send(bytes, to: socket)
            }
            return
        }
        var mine: ControlConnection?
        let connection = ControlConnection(
            socket: socket, loop: loop, patience: patience
        ) { [unowned self] request, descriptor, answer in
            carryOut(request, descriptor, answer)
        } whenEnded: { [weak self] in
            self?.connections.removeAll { $0 === mine }
            mine = nil
        }
        mine = connection
        connections.append(connection)
    }

    // MARK: - Requests

    private func carryOut(
        _ request: ControlSocketRequest, _ descriptor: ReceivedDescriptor?,
        _ answer: @escaping (ControlAnswer) -> Void
    ) {
        let isDone = { (error: ControlError?) in
            answer(error.map { ControlAnswer($0) } ?? ControlAnswer())
        }
        do throws(ControlError) {
            switch request {
            case .list: answer(list())
            case .attach(let specification, let id):
                try devices.attach(specification, id: id, descriptor: descriptor) {
                    [logger] result in
                    do throws(ControlError) {
                        let device = try result.get()
                        logger.notice("'\(device.id)' attached: \(device.summary ?? specification)")
                        var good = ControlAnswer()
                        good.device = device
                        answer(good)
                    } catch {
                        answer(ControlAnswer(error))
                    }
                }
            case .detach(let id):
                try devices.detach(id) { [logger] error in
                    logger.notice("'\(id)' detached\(error.map { ": \($0)" } ?? "")")
                    isDone(error)
                }
            case .insert(let id, let medium, let force):
                try devices.change(id, whenDone: isDone) { backend throws(BackendError) in
                    .insert(
                        try DeviceTable.medium(medium, for: backend), descriptor, force: force)
                }
            case .eject(let id, let force):
                try devices.change(id, whenDone: isDone) { _ in .eject(force: force) }
            case .faults(let id, let rules):
                try devices.change(id, whenDone: isDone) { _ in .faults(rules) }
            }
        } catch {
            answer(ControlAnswer(error))
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
