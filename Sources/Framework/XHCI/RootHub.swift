// SPDX-License-Identifier: Apache-2.0

internal import USB

/// The ports and what is plugged into them (xHCI 4.15, 4.19).
///
/// Here a port's registers change for reasons other than being written. Change bits become events
/// in ``takeSignal(_:)``.
final class RootHub {
    private let registers: RegisterFile
    private(set) var attachments: [Attachment?]

    init(_ registers: RegisterFile) {
        self.registers = registers
        attachments = Array(repeating: nil, count: registers.ports.count)
    }

    /// A port for a device of this speed.
    func freePort(for speed: USBSpeed) -> Int? {
        attachments.indices.first {
            attachments[$0] == nil && registers.ports[$0].isSuperSpeed == speed.isSuperSpeed
        }
    }

    func attachment(of device: any USBDevice) -> Attachment? {
        for case let attachment? in attachments where attachment.device === device {
            return attachment
        }
        return nil
    }

    /// Whether a device on this port can be talked to.
    func isUsable(_ port: Int) -> Bool {
        attachments[port] != nil && registers.ports[port].isEnabled
    }

    // MARK: - Devices come and go

    func plugIn(_ attachment: Attachment) {
        attachments[attachment.portIndex] = attachment
        connect(attachment.portIndex)
    }

    func unplug(_ attachment: Attachment) {
        let port = attachment.portIndex
        guard attachments[port] === attachment else { return }
        attachments[port] = nil
        disconnect(port)
    }

    private func connect(_ port: Int) {
        guard let attachment = attachments[port], registers.ports[port].hasPower else { return }
        registers.ports[port].isConnected = true
        registers.ports[port].speed = attachment.device.speed.rawValue
        registers.ports[port].changes.insert(.connect)
        // A USB 3 link trains by itself; a USB 2 port waits for a reset (xHCI 4.19.1).
        registers.ports[port].isEnabled = registers.ports[port].isSuperSpeed
        registers.ports[port].linkState = registers.ports[port].isSuperSpeed ? .u0 : .polling
    }

    private func disconnect(_ port: Int) {
        guard registers.ports[port].isConnected else { return }
        registers.ports[port].isConnected = false
        registers.ports[port].isEnabled = false
        registers.ports[port].isResetting = false
        registers.ports[port].speed = 0
        registers.ports[port].linkState = .rxDetect
        registers.ports[port].changes.insert(.connect)
    }

    // MARK: - What the driver asks for

    /// Carries out what writes of PORTSC asked for.
    ///
    /// - Returns: the ports whose transfers are over.
    func serviceRequests() -> [Int] {
        var silenced: [Int] = []
        for port in registers.ports.indices where !registers.ports[port].requests.isEmpty {
            let requests = registers.ports[port].requests
            registers.ports[port].requests = []
            if requests.contains(.powerOff) {
                powerOff(port)
                silenced.append(port)
            }
            if requests.contains(.powerOn) { powerOn(port) }
            if requests.contains(.disable) {
                disable(port)
                silenced.append(port)
            }
            if requests.contains(.linkState) { changeLinkState(port) }
            if requests.contains(.warmReset) || requests.contains(.reset) {
                reset(port, isWarm: requests.contains(.warmReset))
            }
        }
        return silenced
    }

    private func reset(_ port: Int, isWarm: Bool) {
        registers.ports[port].isResetting = false
        guard registers.ports[port].hasPower else { return }
        if let attachment = attachments[port] {
            resume(port)
            attachment.device.reset()
            // The device may have gone during its reset; then the port is empty by now.
            guard attachments[port] === attachment else { return }
            registers.ports[port].isEnabled = true
            registers.ports[port].linkState = .u0
            registers.ports[port].speed = attachment.device.speed.rawValue
        }
        registers.ports[port].changes.insert(.reset)
        if isWarm { registers.ports[port].changes.insert(.warmReset) }
    }

    private func disable(_ port: Int) {
        registers.ports[port].isEnabled = false
        registers.ports[port].linkState = .disabled
    }

    private func powerOff(_ port: Int) {
        registers.ports[port].hasPower = false
        registers.ports[port].isConnected = false
        registers.ports[port].isEnabled = false
        registers.ports[port].isResetting = false
        registers.ports[port].speed = 0
        registers.ports[port].linkState = .disabled
    }

    private func powerOn(_ port: Int) {
        guard !registers.ports[port].hasPower else { return }
        registers.ports[port].hasPower = true
        registers.ports[port].linkState = .rxDetect
        connect(port)
    }

    /// A write of PLS with LWS set (xHCI table 5-27, 4.15).
    private func changeLinkState(_ port: Int) {
        let now = registers.ports[port].linkState
        let isSuperSpeed = registers.ports[port].isSuperSpeed
        switch registers.ports[port].requestedLinkState {
        case .u0 where now == .u3 || now == .resume:
            resume(port)
            registers.ports[port].changes.insert(.linkState)
        case .u0 where now == .u1 || now == .u2:
            registers.ports[port].linkState = .u0
            registers.ports[port].changes.insert(.linkState)
        case .u1 where isSuperSpeed && now == .u0, .u2 where now == .u0:
            registers.ports[port].linkState = registers.ports[port].requestedLinkState
        case .u3 where registers.ports[port].isEnabled:
            guard now == .u0 || now == .u1 || now == .u2 else { return }
            registers.ports[port].linkState = .u3
            attachments[port]?.device.setSuspended(true)
        case .resume where now == .u3 && !isSuperSpeed:
            // The driver holds the resume signal for 20 ms and then asks for U0.
            registers.ports[port].linkState = .resume
        case .disabled where isSuperSpeed:
            disable(port)
        case .rxDetect where isSuperSpeed && now == .disabled:
            registers.ports[port].linkState = .rxDetect
            if attachments[port] != nil {
                registers.ports[port].isEnabled = true
                registers.ports[port].linkState = .u0
                registers.ports[port].changes.insert(.connect)
            }
        default:
            break
        }
    }

    private func resume(_ port: Int) {
        let wasSuspended =
            registers.ports[port].linkState == .u3 || registers.ports[port].linkState == .resume
        guard wasSuspended else { return }
        registers.ports[port].linkState = .u0
        attachments[port]?.device.setSuspended(false)
    }

    /// The device asks to be resumed (xHCI 4.15.2.1).
    func remoteWake(_ attachment: Attachment) {
        let port = attachment.portIndex
        guard attachments[port] === attachment, registers.ports[port].linkState == .u3 else {
            return
        }
        if registers.ports[port].isSuperSpeed {
            resume(port)
        } else {
            registers.ports[port].linkState = .resume
        }
        registers.ports[port].changes.insert(.linkState)
    }

    // MARK: - Events

    /// The next port of which the driver is to hear, counted from 0.
    func takeSignal() -> Int? {
        for port in registers.ports.indices
        where !registers.ports[port].changes.isEmpty && !registers.ports[port].isSignalled {
            registers.ports[port].isSignalled = true
            return port
        }
        return nil
    }

    /// The ports after power-on: what is plugged in shows up as newly connected.
    func reset() {
        for port in registers.ports.indices {
            registers.ports[port] = PortRegisters(isSuperSpeed: registers.ports[port].isSuperSpeed)
            connect(port)
        }
    }
}
